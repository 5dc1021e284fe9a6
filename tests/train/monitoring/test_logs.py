import json

from crystal_jax.train.monitoring.logs import MetricsLog


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_rows_that_are_computed_again_go(tmp_path):
    log = MetricsLog(tmp_path, resume_step=0)
    for step in (1, 2, 3):
        log.write(step, {"loss": float(step)})
    log.write_skipped(2, {"loss": 9.0}, ["mp-1"])
    log.write_skipped(3, {"loss": 9.0}, ["mp-2"])
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # a crash
    log = MetricsLog(tmp_path, resume_step=2)
    assert log.last("loss") == 2
    assert log.last("colour") is None
    log.write(3, {"loss": 3.5})
    log.close()
    assert rows(tmp_path / "metrics.jsonl") == [{"step": s, "loss": x} for s, x in ((1, 1.0), (2, 2.0), (3, 3.5))]
    assert rows(tmp_path / "skipped.jsonl") == [{"step": 2, "loss": 9.0, "crystals": ["mp-1"]}]


def test_only_one_process_writes(tmp_path):
    log = MetricsLog(tmp_path, resume_step=0, speaks=False)
    log.write(1, {"loss": 1.0})
    log.write_skipped(1, {"loss": 1.0}, ["mp-1"])
    log.close()
    assert not list(tmp_path.iterdir())
