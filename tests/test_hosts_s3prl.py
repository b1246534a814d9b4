"""s3prl's own tests, from its source archive, on our upstreams."""

import importlib.util
from functools import partial

import pytest
import torch

import espnet2_sslam  # noqa: F401
from espnet2_sslam.checkpoint import save_model
from tests.checkpoint_case import PRETRAIN, small_encoder, unpack
from tests.host_archives import source_archive

pytestmark = pytest.mark.slow
OPTIONS = [{}, {"target_frames": 64}, {"upsample": 8}]


@pytest.fixture(scope="module")
def upstream_tests(tmp_path_factory, pytestconfig):
    """s3prl's test/test_upstream.py as a module."""
    pytestconfig.addinivalue_line("markers", "upstream: of s3prl's tests")
    source = source_archive("s3prl", tmp_path_factory.mktemp("s3prl"))
    file = source / "test" / "test_upstream.py"
    spec = importlib.util.spec_from_file_location("s3prl_test_upstream", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("name", ["sslam", "sslam_mean", "sslam_local", "sslam_custom"])
def test_s3prls_test_of_an_upstream_passes(
    upstream_tests, name, options, tmp_path, monkeypatch
):
    """The stored features, which no new name has, are computed first."""
    from s3prl.nn import S3PRLUpstream

    if name in ("sslam", "sslam_mean"):
        path = save_model(small_encoder(), tmp_path / "model")
    else:
        path = unpack(PRETRAIN, tmp_path)
    build = partial(S3PRLUpstream, path_or_url=str(path), extra_conf=options)
    monkeypatch.setattr(upstream_tests, "S3PRLUpstream", build)
    monkeypatch.setattr(upstream_tests, "EXTRACTED_GT_DIR", tmp_path)
    with torch.no_grad():
        features = upstream_tests._extract_feat(build(name).eval())
    torch.save(list(features), tmp_path / f"{name}.pt")
    upstream_tests._test_specific_upstream(name)
