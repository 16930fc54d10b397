"""The constants of a device: whatever is in the cache or the environment, they are finite and above 0."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from tnc.backends import get
from tnc.contract import devices
from tnc.contract.cost import Device
from tnc.contract.devices import device
from tnc.errors import TncError

RIGHT = asdict(Device())


@pytest.fixture(autouse=True)
def measured(monkeypatch, tmp_path):
    """Nothing stated, an empty cache, and measurements that take no time; returns those made."""
    monkeypatch.delenv("TNC_COST", raising=False)
    monkeypatch.setenv("TNC_CACHE", str(tmp_path / "cache"))
    made = []
    monkeypatch.setattr(devices, "calibrate", lambda backend: made.append(backend) or Device(flops=7e9))
    device.cache_clear()
    yield made
    device.cache_clear()


@pytest.mark.parametrize("rate", ["0", "-1", "nan", "inf"])
@pytest.mark.parametrize("name", RIGHT)
def test_stated_constants_are_finite_and_above_0(monkeypatch, name, rate):
    monkeypatch.setenv("TNC_COST", f"{name}={rate}")
    with pytest.raises(TncError, match=f"TNC_COST='{name}={rate}'.*flops, bytes, call, item, finite and above 0"):
        device(get("numpy"), "here")


@pytest.mark.parametrize(
    "entry",
    [
        5,
        None,
        [1.0],
        {},
        {"flops": 1e10},
        RIGHT | {"new": 1.0},
        *(RIGHT | {"bytes": x} for x in (0, -1.0, "fast", None)),
    ],
    ids=str,
)
def test_a_damaged_entry_is_measured_anew(tmp_path, measured, entry):
    file = tmp_path / "cache" / "devices.json"
    file.parent.mkdir()
    other = RIGHT | {"flops": 3e9}
    file.write_text(json.dumps({"here": entry, "there": other}))
    assert device(get("numpy"), "here") == Device(flops=7e9) and len(measured) == 1
    assert device(get("numpy"), "there") == Device(flops=3e9) and len(measured) == 1
    assert json.loads(file.read_text()) == {"here": RIGHT | {"flops": 7e9}, "there": other}
    assert [one.name for one in file.parent.iterdir()] == ["devices.json"]


@pytest.mark.parametrize("content", [b"", b'{"a', b"[1]", b"\xff\xfe\x00"])
def test_a_damaged_file_is_measured_anew(tmp_path, measured, content):
    file = tmp_path / "cache" / "devices.json"
    file.parent.mkdir()
    file.write_bytes(content)
    assert device(get("numpy"), "here") == Device(flops=7e9) and len(measured) == 1
    device.cache_clear()
    assert device(get("numpy"), "here") == Device(flops=7e9) and len(measured) == 1


def test_without_a_home_there_is_no_cache(monkeypatch, measured):
    def nowhere():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(devices, "cache_folder", nowhere)
    assert device(get("numpy"), "here") == Device(flops=7e9) and len(measured) == 1
