"""Tests that cannot run here are counted, and none is skipped without a known reason."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest_plugins = ["pytester"]


@pytest.fixture
def suite(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """An empty folder with our rules, on a machine without a GPU and without reference data."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    pytester.makeconftest(Path(__file__).with_name("conftest.py").read_text(encoding="utf-8"))
    pytester.makeini("[pytest]\nmarkers = gpu: needs one")
    return pytester


def test_what_needs_a_gpu_or_reference_data_is_left_out_and_counted(suite: pytest.Pytester) -> None:
    suite.makepyfile("""
        import pytest
        @pytest.mark.gpu
        @pytest.mark.parametrize("n", range(3))
        def test_gpu(n): assert False
        def test_golden(shared): assert False
        def test_plain(): pass
    """)
    result = suite.runpytest_inprocess("-p", "no:cacheprovider")
    result.assert_outcomes(passed=1, deselected=4)
    result.stdout.fnmatch_lines(["3 GPU tests not run: no GPU", "1 tests on reference data not run: *"])


def test_a_gpu_test_that_was_not_asked_for_is_not_counted(suite: pytest.Pytester) -> None:
    suite.makepyfile("""
        import pytest
        @pytest.mark.gpu
        def test_gpu(): assert False
        def test_plain(): pass
    """)
    result = suite.runpytest_inprocess("-p", "no:cacheprovider", "-k", "plain")
    assert "GPU tests not run" not in result.stdout.str()


def test_a_skip_without_a_known_reason_is_a_failure(suite: pytest.Pytester) -> None:
    suite.makepyfile("""
        import pytest
        def test_known(): pytest.skip("triton is not installed")
        def test_unknown(): pytest.skip("it hurts")
        @pytest.mark.skip(reason="later")
        def test_marked(): pass
        @pytest.mark.xfail
        def test_expected(): assert False
    """)
    result = suite.runpytest_inprocess("-p", "no:cacheprovider")
    result.assert_outcomes(skipped=1, xfailed=1, failed=1, errors=1)
    result.stdout.fnmatch_lines(["*it hurts*", "*not in MAY_BE_SKIPPED*"])


def test_so_is_a_module_that_skips_itself(suite: pytest.Pytester) -> None:
    suite.makepyfile("import pytest\npytest.importorskip('no_such_package')")
    assert suite.runpytest_inprocess("-p", "no:cacheprovider").ret != 0
