"""Where converted vocabularies are kept: never where another user could have put them."""

from __future__ import annotations

import os
import stat
import tempfile
from typing import TYPE_CHECKING

import pytest

from infer_accel.bench.data import convert

if TYPE_CHECKING:
    from pathlib import Path

ME = 12345


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory for everybody's temporary files, of a user who has no home and makes files of his own there."""
    (tmp_path / "no-home").write_text("")
    (tmp_path / "shared").mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "no-home" / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "shared"))
    return tmp_path / "shared"


def kept(tmp_path: Path) -> Path:
    (tmp_path / "shipped").write_text("x")
    path = convert.written("ranks", tmp_path / "shipped", lambda: b"ranks")
    assert path.read_bytes() == b"ranks"
    return path


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="needs users and their rights")
class TestWithoutAHome:
    def test_it_is_a_directory_of_this_user_alone(self, tmp_path: Path, shared: Path) -> None:
        path = kept(tmp_path)
        assert path.parent == shared / f"infer-accel-{os.getuid()}"
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert kept(tmp_path) == path

    def test_another_user_made_it_first(
        self, tmp_path: Path, shared: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(os, "getuid", lambda: ME)
        (shared / f"infer-accel-{ME}").mkdir(mode=0o700)
        self.expect_a_place_of_our_own(kept(tmp_path), shared / f"infer-accel-{ME}")

    def test_everybody_may_write_there(self, tmp_path: Path, shared: Path) -> None:
        place = shared / f"infer-accel-{os.getuid()}"
        place.mkdir()
        place.chmod(0o777)
        self.expect_a_place_of_our_own(kept(tmp_path), place)

    def test_a_link_is_not_followed(self, tmp_path: Path, shared: Path) -> None:
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        (shared / f"infer-accel-{os.getuid()}").symlink_to(tmp_path / "elsewhere")
        self.expect_a_place_of_our_own(kept(tmp_path), tmp_path / "elsewhere")

    def test_a_file_is_in_its_place(self, tmp_path: Path, shared: Path) -> None:
        (shared / f"infer-accel-{os.getuid()}").write_text("")
        kept(tmp_path)

    @pytest.fixture(autouse=True)
    def forget(self) -> None:
        convert._directory_of_this_process.cache_clear()

    @staticmethod
    def expect_a_place_of_our_own(path: Path, wrong: Path) -> None:
        assert not list(wrong.iterdir())
        assert path.parent != wrong
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_cache_that_cannot_be_written_is_left_alone(
    tmp_path: Path, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache" / "infer-accel").mkdir(parents=True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert kept(tmp_path).is_relative_to(shared)
