"""Test the engine of one process, with which the other engines are compared."""

from recgrit.engines.local import LocalEngine


def test_a_function_returns_and_reports_at_once(tmp_path):
    reported = []

    def work(report):
        for epoch in (1, 2):
            report(epoch)
            assert reported[-1] == epoch, "not only at the end"
        return {"best_epoch": 2}

    found = LocalEngine().run_on_processes(work, reported.append, tmp_path)
    assert found == {"best_epoch": 2}
    assert reported == [1, 2]
