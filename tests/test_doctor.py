"""The doctor must tell a backend that works from one that is absent, or wrong in its forward or its backward."""

import re
import time
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lccp_sim.cli import console_here
from lccp_sim.models import experts
from lccp_sim.models.experts import EXPERTS, loop
from lccp_sim.verbs import doctor


def no_backend(*_: Tensor) -> Tensor:
    raise ImportError("libfancy.so.3 is missing\nand forty lines of advice")


def wrong_gate(x: Tensor, gate: Tensor, up: Tensor, down: Tensor, count: Tensor) -> Tensor:
    return loop(x, gate * 1.01, up, down, count)


def no_gradient_of_down(x: Tensor, gate: Tensor, up: Tensor, down: Tensor, count: Tensor) -> Tensor:
    return loop(x, gate, up, down.detach() + 0 * down, count)


def found(experts: dict, name: str) -> doctor.Finding:
    return next(row for row in doctor.expert_rows(experts) if row.name == name and row.value.startswith("cpu"))


def test_the_loop_is_usable_here() -> None:
    row = found(EXPERTS, "loop")
    assert row.ok and "agrees with the loop to 0e+00" in row.value


def test_every_listed_backend_gets_a_row() -> None:
    assert {row.name for row in doctor.expert_rows(EXPERTS)} == set(EXPERTS)


def test_a_missing_package_is_a_reason_in_one_line() -> None:
    row = found({"loop": loop, "fancy": no_backend}, "fancy")
    assert not row.ok
    assert row.value == "cpu, float32: ImportError: libfancy.so.3 is missing"


@pytest.mark.parametrize("wrong", [wrong_gate, no_gradient_of_down])
def test_a_backend_that_computes_something_else_is_not_usable(wrong) -> None:
    row = found({"loop": loop, "wrong": wrong}, "wrong")
    assert not row.ok and "differ from the loop's" in row.value


def test_nan_is_not_agreement() -> None:
    row = found({"loop": loop, "nan": lambda *args: loop(*args) * torch.nan}, "nan")
    assert not row.ok


def test_the_loop_is_compared_as_the_definition_says() -> None:
    def plain(x: Tensor, gate: Tensor, up: Tensor, down: Tensor, count: Tensor) -> Tensor:
        expert = torch.repeat_interleave(torch.arange(len(count)), count)
        hidden = F.silu(torch.einsum("rd,rfd->rf", x, gate[expert])) * torch.einsum("rd,rfd->rf", x, up[expert])
        return torch.einsum("rf,rfd->rd", hidden, down[expert])

    assert found({"loop": loop, "plain": plain}, "plain").ok


def test_the_whole_answer_names_versions_machine_and_disk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = doctor.doctor(tmp_path / "not" / "yet")
    assert doctor.show(rows, console_here()) == 0
    by_name = {(row.topic, row.name): row for row in rows}
    assert by_name["versions", "torch"].value == torch.__version__
    assert by_name["machine", "cores"].ok and by_name["machine", "cpu"].ok
    assert by_name["disk", "cache"].ok and "GiB free" in by_name["disk", "cache"].value
    text = capsys.readouterr().out
    assert "[submitit]" in text or by_name["versions", "hydra-submitit-launcher"].ok
    assert all(topic in text for topic in ("versions", "machine", "disk", "experts", "loop"))


def test_the_exit_code_is_one_where_no_backend_works() -> None:
    assert doctor.show(doctor.expert_rows({"loop": no_backend}), console_here()) == 1
    assert doctor.show(doctor.expert_rows({"loop": loop, "fancy": no_backend}), console_here()) == 0


def fake(seconds: float):
    """A backend that takes its time, and gives what the loop gives."""

    def run(*args: Tensor) -> Tensor:
        time.sleep(seconds)
        return loop(*args)

    return run


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(doctor.TIMED, "cpu", (16, 2, 512, 16))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_usable_backends_are_timed_and_what_auto_takes_is_marked(brief: None) -> None:
    rows = doctor.speed_rows(EXPERTS, doctor.expert_rows(EXPERTS))
    usable = [row.name for row in doctor.expert_rows(EXPERTS) if row.ok]
    assert [row.name for row in rows] == [*usable, "auto"] and {"loop", "grouped_mm"} <= set(usable)
    assert all(re.match(r"cpu, float32: [\d.]+ ms, half of the times within", row.value) for row in rows[:-1])
    assert "takes grouped_mm for 16 rows and 2 experts of 512 x 16" in rows[-1].value


def test_a_backend_that_is_faster_than_auto_is_recommended(brief: None, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = fake(0.1)
    monkeypatch.setattr(experts, "choose_backend", lambda *_: slow)
    backends = {"loop": loop, "slow": slow}
    found = [doctor.Finding("experts", name, "cpu, float32: agrees") for name in backends]
    auto = doctor.speed_rows(backends, found)[-1]
    assert auto.ok and auto.value.endswith("; loop was faster by more than noise: set model.experts=loop")
    # Nothing is said of one that is faster but not usable, nor of noise.
    assert "faster" not in doctor.speed_rows(backends, found[1:])[-1].value
    monkeypatch.setattr(experts, "choose_backend", lambda *_: loop)
    assert "faster" not in doctor.speed_rows(backends, found)[-1].value


def test_auto_that_takes_what_is_not_usable_is_said(brief: None) -> None:
    [row] = doctor.speed_rows({"loop": loop}, [])
    assert not row.ok and row.value.endswith("takes a backend that is not usable here")


def test_an_optional_package_that_is_absent_comes_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(doctor.OPTIONAL, "no-such-package", "lccp-sim[none]")
    row = next(row for row in doctor.version_rows() if row.name == "no-such-package")
    assert row == doctor.Finding(
        "versions", "no-such-package", "not installed (optional): pip install 'lccp-sim[none]'", False
    )
