from pathlib import Path

import pytest
from pydantic import Field, ValidationError

from recgrit.config import Config, load_config, read_yaml
from recgrit.errors import ConfigError
from recgrit.experiment import ExperimentConfig
from recgrit.training.config import TransformerConfig


class Optimizer(Config):
    learning_rate: float = Field(1e-3, gt=0)
    betas: tuple[float, float] = (0.9, 0.98)


class Retriever(Config):
    epochs: int = 10
    model_dim: int = 128
    optimizer: Optimizer = Optimizer()


class Experiment(Config):
    seed: int = 0
    name: str | None = None
    retriever: Retriever = Retriever()
    warmup: Optimizer | None = None


@pytest.fixture
def yaml_file(tmp_path: Path) -> Path:
    path = tmp_path / "experiment.yaml"
    path.write_text(
        "seed: 7\nretriever:\n  epochs: 3\n  optimizer: {learning_rate: 0.01}\n", encoding="utf-8"
    )
    return path


def test_defaults_without_a_file() -> None:
    assert load_config(Experiment) == Experiment()


def test_a_file_changes_what_it_names_only(yaml_file: Path) -> None:
    config = load_config(Experiment, yaml_file)
    assert (config.seed, config.retriever.epochs, config.retriever.model_dim) == (7, 3, 128)
    assert config.retriever.optimizer.learning_rate == 0.01


def test_overrides_win_and_leave_their_neighbours(yaml_file: Path) -> None:
    overrides = ["retriever.epochs=5", "retriever.optimizer.betas=[0.8, 0.9]", "name=a=b"]
    config = load_config(Experiment, yaml_file, overrides)
    assert config.retriever.epochs == 5
    assert config.retriever.optimizer == Optimizer(learning_rate=0.01, betas=(0.8, 0.9))
    assert config.name == "a=b"
    assert config.seed == 7


def test_the_last_override_wins() -> None:
    assert load_config(Experiment, overrides=["seed=1", "seed=2"]).seed == 2


def test_an_override_may_be_a_mapping(yaml_file: Path) -> None:
    config = load_config(Experiment, yaml_file, ["retriever={model_dim: 64}"])
    assert (config.retriever.epochs, config.retriever.model_dim) == (3, 64)


def test_an_override_fills_a_section_that_is_absent() -> None:
    config = load_config(Experiment, overrides=["warmup.learning_rate=1e-4"])
    assert config.warmup == Optimizer(learning_rate=1e-4)


def test_null_and_empty_overrides_mean_none() -> None:
    assert load_config(Experiment, overrides=["name=x", "name=null"]).name is None
    assert load_config(Experiment, overrides=["name="]).name is None


@pytest.mark.parametrize("text", ["~", "%m/%d/%Y", "|", "#", ",", "*.csv", "@shop", "`x`", ">1"])
def test_overrides_that_are_not_yaml_values_are_read_as_text(text: str) -> None:
    assert load_config(Experiment, overrides=[f"name={text}"]).name == text


@pytest.mark.parametrize("override", ["seed", "=3", "seed 3"])
def test_an_override_without_key_or_value_is_refused(override: str) -> None:
    with pytest.raises(ConfigError, match="expected key=value"):
        load_config(Experiment, overrides=[override])


def test_an_override_that_is_not_yaml_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"override 'name=\[1' is not valid YAML"):
        load_config(Experiment, overrides=["name=[1"])


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("sed=1", "sed: unknown key. Did you mean seed?"),
        ("retriever.epoch=3", "retriever.epoch: unknown key. Did you mean retriever.epochs?"),
        ("warmup.beta=3", "warmup.beta: unknown key. Did you mean warmup.betas?"),
        # The key exists in another section.
        ("model_dim=3", "model_dim: unknown key. Did you mean retriever.model_dim?"),
        ("zzz=3", "zzz: unknown key. Known keys here: name, retriever, seed, warmup."),
    ],
)
def test_unknown_keys_are_refused_with_the_nearest_name(override: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(Experiment, overrides=[override])
    assert hint in str(caught.value)


def test_all_invalid_settings_are_reported_at_once(yaml_file: Path) -> None:
    overrides = ["seed=x", "retriever.optimizer.learning_rate=-1", "retriever.epoch=3"]
    with pytest.raises(ConfigError) as caught:
        load_config(Experiment, yaml_file, overrides)
    text = str(caught.value)
    assert text.startswith(f"3 setting(s) of {yaml_file} cannot be used:")
    assert "seed: Input should be a valid integer" in text
    assert "(got 'x')" in text
    assert "retriever.optimizer.learning_rate: Input should be greater than 0 (got -1)" in text


def test_a_section_that_is_no_mapping_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"retriever: .*dictionary.*\(got 3\)"):
        load_config(Experiment, overrides=["retriever=3"])


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"No config file at .*absent\.yaml"):
        load_config(Experiment, tmp_path / "absent.yaml")


@pytest.mark.parametrize("content", [b"seed: [1", b"seed: 1: 2\n", b"name: \xff\xfe\n"])
def test_bad_yaml_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"bad\.yaml is not valid YAML"):
        load_config(Experiment, path)


@pytest.mark.parametrize(("content", "kind"), [("- 1\n- 2\n", "list"), ("text\n", "str")])
def test_a_file_without_keys_is_refused(tmp_path: Path, content: str, kind: str) -> None:
    path = tmp_path / "list.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=f"at its top level, got a {kind}"):
        load_config(Experiment, path)


def test_an_empty_file_means_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "empty.yaml"
    path.write_text("# nothing yet\n")
    assert read_yaml(path) == {}
    assert load_config(Experiment, path) == Experiment()


def test_settings_are_frozen() -> None:
    config = Experiment()
    with pytest.raises(ValidationError, match="frozen"):
        config.seed = 3  # type: ignore[misc]


def test_the_home_folder_may_be_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Placed(Config):
        place: Path

    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_config(Placed, overrides=["place=~/runs"]).place == tmp_path / "runs"
    assert load_config(Placed, overrides=["place=2024-01-01"]).place == Path("2024-01-01")


def aliases(width: int, levels: int) -> str:
    """Build YAML of a few lines that expand to ``width ** levels`` values."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    for level in range(1, levels):
        lines.append(f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * width)}]")
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (aliases(9, 9), r"aliases resolved, and 10,000 are allowed"),
        (aliases(9, 5), "aliases resolved"),
        ("a: &a [*a]", "nested more than"),
        ("a: " + "[" * 5000 + "]" * 5000, "nested too deeply"),
        ("a: " + "[" * 60 + "]" * 60, "nested more than 50 deep"),
        ("a: " + "9" * 5000, "not valid YAML"),
        ("model_dim: " + "9" * 4000, "at most 9,223,372,036,854,775,807 in absolute value"),
        ("model_dim: " + "-" + "9" * 40, "in absolute value"),
        ("model_dim: [" + "x, " * 9000 + "]", "…"),
        ("\n".join(f"k{number}: 1" for number in range(4000)), "and 3,980 more"),
        (
            "x" * 2**20 + ": 1\n",
            r"1,048,580 bytes .* 1,048,576 are allowed",
        ),
    ],
)
def test_malicious_settings_are_refused_with_a_short_message(
    tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "bomb.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(TransformerConfig, path)
    assert len(str(caught.value)) < 6000
    if "\n" not in text:
        with pytest.raises(ConfigError) as caught:
            load_config(TransformerConfig, overrides=["{}={}".format(*text.split(": ", 1))])
        assert len(str(caught.value)) < 1000


def test_aliases_may_be_used(tmp_path: Path) -> None:
    path = tmp_path / "alias.yaml"
    path.write_text("epochs: &few 3\npatience: *few\n")
    found = load_config(TransformerConfig, path)
    assert (found.epochs, found.patience) == (3, 3)


@pytest.mark.parametrize(
    ("setting", "allowed"),
    [
        ("retriever.model_dim=10000000", "16384"),
        ("retriever.num_layers=1000000", "256"),
        ("retriever.history_length=1000000000000", "100000"),
        ("retriever.epochs=10000000", "1000000"),
        ("sasrec.num_heads=100000", "1024"),
        ("tiger.head_dim=100000", "16384"),
        ("evaluation.beam_width=-3", "1"),
        ("evaluation.beam_width=1000000000", "100000"),
        ("evaluation.ks=[5, 1000000000]", "1,000,000"),
        ("evaluation.num_bootstrap=1000000000", "1000000"),
        ("recommendation.top_k=1000000000", "1000000"),
        ("tokenizer.codebook_size=1000000000", "1,048,576"),
        ("tokenizer.codebook_size=[8, 8, 1000000000]", "1,048,576"),
        ("tokenizer.hidden_dims=[1000000000]", "65,536"),
        ("tokenizer.epochs=10000000", "1000000"),
        ("embedding.dim=10000000", "65536"),
        ("features.text_dim=10000000", "65536"),
    ],
)
def test_absurd_values_are_refused_with_the_number_allowed(setting: str, allowed: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(ExperimentConfig, overrides=[setting])
    assert allowed in str(caught.value)
    assert setting.partition("=")[2].strip("[]") in str(caught.value)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ('"a\\0b"', "NUL"),
        ("x" * 300, "each name in it 255, got 300"),
        ("/".join(["x" * 200] * 30), "4,096 bytes"),
        ("~nobody-is-called-so/x", "no such home folder"),
    ],
)
def test_paths_that_no_file_system_has_are_refused(path: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(ExperimentConfig, overrides=[f"run.dir={path}"])


def test_a_config_file_that_cannot_be_there_is_missing() -> None:
    for name in ("x" * 300, "a\0b"):
        with pytest.raises(ConfigError, match="No config file"):
            read_yaml(Path(name))
