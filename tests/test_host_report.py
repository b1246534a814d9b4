"""The table of `make hosts`."""

from tests import host_report

JUNIT = """<testsuites><testsuite>
<testcase classname="tests.test_hosts_espnet" name="test_a_recipe_trains[asr]"/>
<testcase classname="tests.test_hosts_espnet" name="test_a_recipe_trains[spk]"/>
<testcase classname="tests.test_hosts_espnet" name="test_a_recipe_trains[cls]">
  <skipped message="cls_train needs torcheval"/></testcase>
<testcase classname="tests.test_hosts_transformers" name="test_common">
  <properties><property name="result" value="88 passed, 2 | 0"/></properties></testcase>
<testcase classname="tests.test_s3prl_runs" name="test_it">
  <error message="no"/></testcase>
</testsuite></testsuites>"""


def test_the_table_says_what_passed_and_why_the_rest_did_not_run(tmp_path):
    (tmp_path / "report.xml").write_text(JUNIT)
    made = host_report.table([tmp_path / "report.xml"]).splitlines()
    assert "torch 2." in made[0] and "espnet2_sslam" in made[0]
    skipped = "skipped: cls_train needs torcheval (cls)"
    assert made[4:] == [
        f"| ESPnet | a recipe trains | pass (asr, spk); {skipped} |",
        "| s3prl | it | fail |",
        r"| transformers | common | 88 passed, 2 \| 0; pass |",
    ]
    for patterns in host_report.HOSTS.values():
        for pattern in patterns.split():
            file, _, name = pattern.partition("::")
            found = list(host_report.TESTS.glob(file))
            assert "harness" in file or found, pattern
            assert all(f"def {name}" in path.read_text() for path in found)
