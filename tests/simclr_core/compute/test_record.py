from pathlib import Path

from simclr_core.compute.record import Ran, read_ran, write_ran


def test_a_record_is_kept_and_read(tmp_path: Path) -> None:
    assert read_ran(tmp_path, "finetune@0.01") is None
    ran = Ran("ray", ["a", "b"], workers=4, gpus=4, seconds=7200.0, attempts=2)
    write_ran(tmp_path, "finetune@0.01", ran)
    assert read_ran(tmp_path, "finetune@0.01") == ran
    assert str(ran) == "ray: 4 processes with a GPU each, 2 GPU-hours, on a, b; begun 2 times"
    assert ran.numbers["gpu_hours"] == 2.0
    assert Ran("local", ["a"], workers=1, seconds=9.0).gpu_hours == 0.0


def test_what_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    for text in ("{", "[]", '{"engine": "ray"}'):
        (tmp_path / ".simclr" / "ran").mkdir(parents=True, exist_ok=True)
        (tmp_path / ".simclr" / "ran" / "pretrain.json").write_text(text)
        assert read_ran(tmp_path, "pretrain") is None
