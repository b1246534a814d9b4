"""What users see has not changed: the records of tests/contract.

`python -m tests.contract_record --write [NAME ...]` freezes anew; see its module.
"""

import importlib.util
import json

import pytest

from tests.contract_record import RECORDED, Workspace, differences

SHOWN = 25  # differences that a failure prints


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Audio, checkpoints and trainings that the records share."""
    return Workspace(tmp_path_factory.mktemp("contract").resolve())


def marked(record):
    """The parameter of a record; slow ones are marked."""
    marks = [pytest.mark.slow] if record.slow else []
    return pytest.param(record, id=record.name, marks=marks)


@pytest.mark.parametrize("record", [marked(each) for each in RECORDED.values()])
def test_users_see_what_they_saw(record, work):
    for host in record.needs:
        if importlib.util.find_spec(host) is None:
            pytest.skip(f"{host} is not installed")
    old = json.loads(record.path.read_text(encoding="utf-8"))
    new = record.content(work)
    found = differences(old, new, record.rtol)
    text = "\n  ".join(found[:SHOWN])
    assert not found, (
        f"{len(found)} differences from {record.path.name} "
        f"(python -m tests.contract_record --write {record.name} freezes anew):\n"
        f"  {text}"
    )
