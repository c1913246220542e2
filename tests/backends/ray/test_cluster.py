"""Folders of local clusters that a killed driver has left."""

from __future__ import annotations

import os

from filelock import FileLock

from burnish.backends.ray.cluster import LOCK, PREFIX, remove_abandoned


def test_only_old_folders_whose_lock_is_free_are_removed(tmp_path):
    old, held, new, other = (tmp_path / f"{PREFIX}{name}" for name in ("old", "held", "new", "other"))
    for folder in (old, held, new, other):
        (folder / "logs").mkdir(parents=True)
    for folder in (old, held, new):
        (folder / LOCK).touch()
    with FileLock(held / LOCK):
        for folder in (old, held):
            os.utime(folder / LOCK, (0, 0))
        remove_abandoned(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{PREFIX}held", f"{PREFIX}new", f"{PREFIX}other"]
