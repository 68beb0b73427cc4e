"""Test time formats. An ambiguous one is refused, and fractions of a second order rows."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recgrit.data.config import DataConfig
from recgrit.data.date_texts import CLOCKS, FORMATS, MONTHS
from recgrit.data.prepare import prepare
from recgrit.data.sources import build_source
from recgrit.data.sources.table import Table
from recgrit.data.time_settings import TimeSettings
from recgrit.data.times import TimeReader
from recgrit.errors import ConfigError, DataError

DAY = 1_320_105_600  # 2011-11-01


def read(times: Sequence[Any] | pl.Series, **known: Any) -> list[float | None]:
    series = times if isinstance(times, pl.Series) else pl.Series(times, strict=False)
    frame = TimeReader("at", TimeSettings(**known)).read(series, "log.csv")
    fraction = frame["fraction"] if "fraction" in frame.columns else pl.Series([0.0])
    seconds = frame["timestamp"].cast(pl.Float64) + fraction
    return [None if second is None else round(second, 6) for second in seconds]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2011-11-01", DAY),
        ("2011-11-01 10:30", DAY + 37_800),
        ("2011-11-01 10:30:15", DAY + 37_815),
        ("2011-11-01T10:30:15Z", DAY + 37_815),
        ("2011-11-01 10:30:15 UTC", DAY + 37_815),
        ("2011-11-01T10:30:15.25+02:00", DAY + 30_615.25),
        ("2011-11-01 10:30:15,25 -0130", DAY + 43_215.25),
        ("2011/11/1 9:05", DAY + 32_700),
        ("20111101T103015Z", DAY + 37_815),
        ("1 Nov 2011", DAY),
        ("November 1st, 2011 10:30 PM", DAY + 81_000),
        ("Tue, 01 Nov 2011 10:30:15 GMT", DAY + 37_815),
        ("Tue Nov 01 10:30:15 +0000 2011", DAY + 37_815),
        ("01/Nov/2011:10:30:15 +0100", DAY + 34_215),
        ("31/11/1", None),
        ("13/1/2011 12:00 AM", 1_294_876_800),
        ("1.13.2011", 1_294_876_800),
        ("31.1.99", 917_740_800),
        ("1320105600", DAY),
        (" 1320105600.5 ", DAY + 0.5),
        ("1320105600,5", DAY + 0.5),
        ("1320105600123", DAY + 0.123),
        ("2011-11-01 10:30 CET", None),
        ("2011-02-30", None),
        ("NaN", None),
        ("", None),
        ("soon", None),
    ],
)
def test_each_way_of_writing_a_time(text: str, seconds: float | None) -> None:
    assert read([text]) == [seconds]
    assert read([f"  {text}\t"]) == [seconds], "blanks around do not count"
    assert read(pl.Series([text], dtype=pl.Categorical)) == [seconds]


def test_each_cell_is_judged_by_itself() -> None:
    times = ["2011-11-01 00:00:00", "NaN", " 2011-11-01T00:00:01Z", "", None, "Nov 1, 2011", "0"]
    found = read([*times, *["2011-11-01"] * 20])
    assert found[:7] == [DAY, None, DAY + 1, None, None, DAY, None]
    assert read([*["1320105600"] * 30, "NULL", "2011-11-01"])[-3:] == [DAY, None, DAY]


@settings(deadline=None)
@given(st.datetimes(datetime.datetime(1971, 1, 1), datetime.datetime(2200, 1, 1)))
def test_no_form_changes_a_time(time: datetime.datetime) -> None:
    exact = time.replace(tzinfo=datetime.UTC).timestamp()
    clock = time.strftime("%H:%M:%S.%f")
    forms = [
        time.isoformat(" "),
        time.isoformat() + "Z",
        f"{time.day} {MONTHS[time.month - 1]} {time.year} {clock}",
        f"{time.year}/{time.month}/{time.day} {clock} UTC",
    ]
    assert read(forms) == [round(exact, 6)] * 4
    assert read(pl.Series([time])) == [round(exact, 6)]
    for form in ("%m/%d/%Y %H:%M:%S%.f", "%d.%m.%Y %H:%M:%S%.f"):
        text = time.strftime(form.replace("%.f", ".%f"))
        assert read([text], time_format=form) == [round(exact, 6)]


@settings(deadline=None)
@given(st.lists(st.dates(datetime.date(1990, 1, 1), datetime.date(2040, 1, 1)), min_size=1))
def test_dates_are_read_in_one_order_or_a_format_is_required(days: list[datetime.date]) -> None:
    expected = [(day - datetime.date(1970, 1, 1)).days * 86400 for day in days]
    for form in ("%m/%d/%Y", "%d/%m/%Y"):
        texts = [day.strftime(form) for day in days]
        if any(day.day > 12 for day in days):
            assert read(texts) == expected
        else:
            with pytest.raises(DataError, match=r"month or the day first.*time_format='%m/%d/%Y'"):
                read(texts)
        assert read(texts, time_format=form) == expected


@settings(deadline=None)
@given(
    st.datetimes(datetime.datetime(1700, 1, 1), datetime.datetime(2200, 1, 1)),
    st.sampled_from([*FORMATS, *(f"%d.%m.%Y{clock}" for clock in CLOCKS)]),
)
def test_fast_forms_and_patterns_agree(time: datetime.datetime, form: str) -> None:
    time = time.replace(day=max(time.day, 13), tzinfo=datetime.UTC)
    text = time.strftime(form.replace("%.f", ".%f").replace("%#z", "+0000"))
    reader = TimeReader("at", TimeSettings())
    fast = reader.read(pl.Series([text]), "log.csv")
    slow = reader._texts.read_any(pl.Series([text]), "log.csv")
    assert fast["timestamp"].to_list() == slow["timestamp"].to_list() != [None]
    if "%.f" in form and time.microsecond:
        assert fast["fraction"].to_list() == pytest.approx(slow["fraction"].to_list())


def test_years_that_nanoseconds_do_not_reach() -> None:
    found = read(["2011-11-01 00:00:00.1234567", "3011-11-01 00:00:00.1234567"])
    assert found == pytest.approx([DAY + 0.1234567, 32_877_014_400 + 0.1234567], abs=1e-5, rel=0)


def test_both_orders_in_one_column_are_refused() -> None:
    with pytest.raises(DataError, match=r"log\.csv: .*first in some rows and the day first"):
        read(["30/9/2011 10:00", "9/30/2011 10:00"])


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ([20111101, 20111102], r"dates such as 20111101.*the year 1970.*time_format=%Y%m%d"),
        (["20111101", "20111102"], r"log\.csv: the numbers in at, such as 20111101, look like dat"),
        ([20111101093000], r"time_format=%Y%m%d%H%M%S"),
        ([201111010930], r"time_format=%Y%m%d%H%M"),
        ([2011110109], r"time_format=%Y%m%d%H"),
        ([201111, 201112], r"months such as 201111.*time_format=%Y%m"),
        ([2011, 2012], r"look like years.*time_format=%Y"),
        ([40848.1, 40849.5], r"day numbers of spreadsheets.*time_unit=excel"),
        (["40848,1", "40849,5"], r"day numbers of spreadsheets.*time_unit=excel"),
        ([15279, 15280], r"days since 1970.*time_unit=d"),
        ([366_696], r"hours since 1970.*time_unit=h"),
        ([22_001_760], r"minutes since 1970.*time_unit=min"),
    ],
)
def test_numbers_that_are_not_seconds_are_refused(times: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(times)
    setting = message.rpartition("time_")[2].split("=")
    if len(setting) == 2:
        found = read(times, **{f"time_{setting[0]}": setting[1]})
        assert all(1.29e9 < second < 1.36e9 for second in found if second is not None)
        assert None not in found


def test_days_of_a_spreadsheet() -> None:
    assert read([40848.25], time_unit="excel") == [DAY + 21_600]
    assert read([40848.0], time_unit="excel", timezone="Europe/Berlin") == [DAY - 3600]


@pytest.mark.parametrize("scale", [1, 1000, 10**6, 10**9])
def test_units_are_found(scale: int) -> None:
    assert read([DAY * scale, (DAY + 5) * scale]) == [DAY, DAY + 5]


def test_an_ambiguous_unit_of_the_first_rows_is_settled_by_all_rows() -> None:
    parts = [pl.Series([0, 0, 5]), pl.Series([DAY * 1000 + n for n in range(9)])]
    reader = TimeReader("at", TimeSettings(), other_files=lambda: parts)
    found = [reader.read(part, "log.csv")["timestamp"].to_list() for part in parts]
    assert found == [[0, 0, 0], [DAY] * 9]


def test_numbers_of_a_coarser_unit_are_no_times() -> None:
    reader = TimeReader("at", TimeSettings())
    mixed = pl.Series([DAY * 1000, DAY * 1000 + 1, DAY, 0])
    assert reader.read(mixed, "log.csv")["timestamp"].to_list() == [DAY, DAY, None, 0]
    assert f"such as {DAY} cannot be read; numbers are read as ms" in (reader.describe_unread())
    set_by_hand = TimeReader("at", TimeSettings(time_unit="ms"))
    assert set_by_hand.read(pl.Series([DAY]), "log.csv")["timestamp"].to_list() == [DAY // 1000]


def test_times_all_in_1970_are_reported(caplog: pytest.LogCaptureFixture) -> None:
    reader = TimeReader("at", TimeSettings())
    assert reader.read(pl.Series([0.005, 0.015]), "log.csv")["fraction"].to_list() == [0.005, 0.015]
    reader.finish()
    assert "All times in at lie in 1970" in caplog.text


def test_times_that_were_saved_as_float32_are_reported(caplog: pytest.LogCaptureFixture) -> None:
    read(pl.Series([float(DAY)], dtype=pl.Float32))
    assert "saved as float32" in caplog.text


def test_counters_are_counters_in_every_part(tmp_path: Path) -> None:
    for part, first in enumerate((1, 9_000, 40_000)):
        write_log(tmp_path, f"{part}.csv", range(first, first + 3), f"{part}xy")
    assert items_in_order(tmp_path) == ["0", "x", "y", "1", "x", "y", "2", "x", "y"]


def test_the_set_time_zone_applies_to_times_without_one() -> None:
    berlin = {"timezone": "Europe/Berlin"}
    naive = pl.Series([datetime.datetime(2011, 11, 1)])
    assert read(["2011-11-01", "2011-11-01 00:00Z"], **berlin) == [DAY - 3600, DAY]
    assert read(naive, **berlin) == [DAY - 3600]
    assert read(naive.dt.replace_time_zone("America/New_York"), **berlin) == [DAY + 4 * 3600]
    with pytest.raises(ConfigError, match=r"timezone=Mars/Base is not a known time zone"):
        read([], timezone="Mars/Base")


@pytest.mark.parametrize(
    ("times", "what"),
    [
        (pl.Series([["2011-11-01"]]), "lists"),
        (pl.Series([b"2011-11-01"]), "raw bytes"),
        (pl.Series([datetime.time(10)]), "times of day"),
        (pl.Series([{"date": 1}]), "structs"),
        (pl.Series([True]), "true or false"),
        (pl.Series([datetime.timedelta(1)]), "durations"),
    ],
)
def test_types_that_are_no_time(times: pl.Series, what: str) -> None:
    with pytest.raises(DataError, match=rf"log\.csv: the column at holds {what}"):
        read(times)


def test_a_format_that_does_not_fit() -> None:
    reader = TimeReader("at", TimeSettings(time_format="%Q"))
    assert reader.read(pl.Series(["2011"]), "log.csv")["timestamp"].to_list() == [None]
    assert reader.describe_unread().endswith("'2011' cannot be read as data.table.time_format='%Q'")
    with pytest.raises(ConfigError, match=r"time_format='%p' cannot be used"):
        read(["2011"], time_format="%p")


# The tests below read times by `prepare`.


def write_log(folder: Path, name: str, times: Sequence[Any], items: str = "") -> None:
    names = items or "abcdefgh"[: len(times)]
    lines = [f"u,{item},{time}" for item, time in zip(names, times, strict=True)]
    (folder / name).write_text("\n".join(["user_id,item_id,timestamp", *lines, ""]))


def items_in_order(folder: Path, **values: Any) -> list[str]:
    config = DataConfig.model_validate(
        {"source": "table", "path": folder, "min_user_interactions": 1}
        | {"min_item_interactions": 1} | values
    )  # fmt: skip
    return prepare(config).interactions.to_polars()["item_id"].to_list()


@pytest.mark.parametrize("partition_users", [None, 1])
def test_interactions_within_a_second_are_ordered_by_fractions(
    tmp_path: Path, partition_users: int | None
) -> None:
    clicks = ["2022-07-22 08:15:40.9", "2022-07-22 08:15:40.1", "2022-07-22 08:15:40.9"]
    write_log(tmp_path, "1.csv", clicks, "bab")
    write_log(tmp_path, "2.csv", ["2022-07-22 08:15:40", "2022-07-22 08:15:40.5"], "ac")
    found = items_in_order(tmp_path, partition_users=partition_users)
    assert found == ["a", "a", "c", "b"], "equal times alone are one event; order spans files"
    kept = items_in_order(tmp_path, partition_users=partition_users, repeats="last")
    assert kept == ["a", "c", "b"]


def test_other_files_settle_ambiguous_dates_of_one_file(tmp_path: Path) -> None:
    write_log(tmp_path, "1.csv", ["9/10/2011", "10/9/2011"])
    with pytest.raises(DataError, match=r"1\.csv: the dates in timestamp, such as '9/10/2011'"):
        items_in_order(tmp_path)
    write_log(tmp_path, "2.csv", ["9/30/2011"], "c")
    assert items_in_order(tmp_path) == ["a", "c", "b"]


def test_times_of_atomic_files_are_read_by_the_same_rules(tmp_path: Path) -> None:
    header = "user_id:token\titem_id:token\ttimestamp:float\n"
    path = tmp_path / "x.inter"
    path.write_text(header + "u\ta\t1320105600900\nu\tb\t1320105600100\n")
    assert items_in_order(path, source="recbole") == ["b", "a"]
    path.write_text(header + "u\ta\t20111101\n")
    with pytest.raises(DataError, match=r"data\.table\.time_format=%Y%m%d"):
        items_in_order(path, source="recbole")
    table = {"time_format": "%Y%m%d"}
    assert items_in_order(path, source="recbole", table=table) == ["a"]
    assert isinstance(build_source("table", table=Table(**DataConfig().table.model_dump())), Table)


def test_the_cause_of_malformed_lines_is_reported(tmp_path: Path) -> None:
    lines = [f"u,i{place},132010560{place},{'5' * (place == 0)}" for place in range(9)]
    (tmp_path / "log.csv").write_text("\n".join(["user_id,item_id,timestamp,rating", *lines]))
    with pytest.raises(DataError, match=r"8 of 9 lines are malformed.*8 of them lack a rating"):
        items_in_order(tmp_path, table={"weight": "rating"})
    write_log(tmp_path, "log.csv", ["soon", "later"])
    with pytest.raises(DataError, match=r"lack a time; times in timestamp such as 'soon', 'later'"):
        items_in_order(tmp_path)
