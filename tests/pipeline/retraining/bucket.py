"""A bucket as fsspec shows one: ETags, no local files, a listing that is remembered until it is reported to forget
it."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, ClassVar

import fsspec


class Bucket(fsspec.AbstractFileSystem):
    protocol = "bucket"
    objects: ClassVar[dict[str, tuple[bytes, datetime]]] = {}
    read: ClassVar[list[str]] = []
    etags: ClassVar[bool] = True

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._listing: dict[str, dict[str, Any]] | None = None

    def invalidate_cache(self, path: str | None = None) -> None:
        self._listing = None

    def exists(self, path: str, **options: Any) -> bool:
        return any(name.startswith(f"{path}/") for name in self.objects)

    def find(self, path: str, **options: Any) -> dict[str, dict[str, Any]]:
        if self._listing is None:
            self._listing = {name: self._details(name) for name in self.objects}
        return {name: details for name, details in self._listing.items() if name.startswith(f"{path}/")}

    def cat_file(self, path: str, *_: Any, **options: Any) -> bytes:
        self.read.append(path)
        return self.objects[path][0]

    def _details(self, name: str) -> dict[str, Any]:
        data, changed = self.objects[name]
        reported = {"ETag": f'"{hashlib.md5(data).hexdigest()}"', "LastModified": changed} if self.etags else {}
        return {"name": name, "size": len(data), "type": "file"} | reported


@contextmanager
def bucket(etags: bool = True) -> Iterator[type[Bucket]]:
    fsspec.register_implementation("bucket", Bucket, clobber=True)
    Bucket.objects, Bucket.read, Bucket.etags = {}, [], etags
    yield Bucket
    Bucket.clear_instance_cache()


def upload(name: str, data: bytes, when: datetime = datetime(2026, 11, 1, tzinfo=UTC)) -> None:
    Bucket.objects[name] = (data, when)
