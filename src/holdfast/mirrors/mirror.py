"""`Mirror`: another place for a run's checkpoints, as the user names it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable

from holdfast.errors import UsageError
from holdfast.objects import urls
from holdfast.policy.keep import Keep, parse_size


@dataclasses.dataclass(frozen=True)
class Mirror:
    """Another place that holds a run's checkpoints; a string in `Run(mirrors=[…])` is short for it.

    Attributes:
        url: a directory, on another disk than the run's, say, whose parent must exist; or `s3://bucket/prefix`,
            `gs://bucket/prefix`, `az://container/prefix`, whose bucket must exist. It holds no credentials: they are
            taken from where the store's other tools find them (docs/mirrors.md).
        keep: which checkpoints stay there; None: as the run keeps them. The run's best ones stay in any case.
        limit: bytes per second that a copy takes at most, as a number or like "50 MB"; None: as fast as it goes.
        required: a checkpoint is deleted from the run only when a newer one is there, and `close` raises where
            it is not up to date; otherwise a mirror that lags or fails is only warned of.

    Raises:
        UsageError: a value makes no sense, or the place is of a kind that is not supported.

    """

    url: str | os.PathLike[str]
    keep: Keep | None = dataclasses.field(default=None, kw_only=True)
    limit: int | float | str | None = dataclasses.field(default=None, kw_only=True)
    required: bool = dataclasses.field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        url: object = self.url
        if not isinstance(url, str | os.PathLike) or not os.fspath(url):
            raise UsageError(
                f'Mirror({url!r}): expected a directory or a URL, like Mirror("/archive/digits") or '
                f'Mirror("s3://bucket/digits").',
                found=url,
            )
        text = os.fspath(url)
        keep: object = self.keep
        if keep is not None and not isinstance(keep, Keep):
            raise UsageError(f"Mirror(keep={keep!r}): expected Keep(…), like Keep(last=10).", found=keep)
        if not isinstance(self.required, bool):
            raise UsageError(
                f"Mirror(required={self.required!r}): expected True or False.", found=self.required
            )
        if self.limit is not None:
            try:
                parse_size(self.limit)
            except UsageError as error:
                raise UsageError(
                    f"Mirror(limit={self.limit!r}): expected bytes per second, such as 50_000_000 or '50 MB'.",
                    found=self.limit,
                ) from error
        place = urls.parse(text).url if urls.is_url(text) else os.path.abspath(os.path.expanduser(text))
        object.__setattr__(self, "url", place)

    @property
    def path(self) -> str:
        """The directory, absolute, or the URL."""
        return os.fspath(self.url)

    @property
    def limit_bytes(self) -> int | None:
        """Bytes per second that a copy takes at most."""
        return None if self.limit is None else parse_size(self.limit)


def checked(mirrors: Iterable[str | os.PathLike[str] | Mirror], run: str) -> tuple[Mirror, ...]:
    """The mirrors of a run.

    Raises:
        UsageError: one is the run itself, lies in it or holds it, or is given twice.

    """
    if isinstance(mirrors, str | os.PathLike | Mirror):
        raise UsageError(
            f'mirrors={mirrors!r}: expected a list, like mirrors=["/archive/digits"].', found=mirrors
        )
    found: list[Mirror] = []
    seen: dict[str, str] = {}
    here = os.path.realpath(run)
    for one in mirrors:
        mirror = one if isinstance(one, Mirror) else Mirror(one)
        real = mirror.path if urls.is_url(mirror.path) else os.path.realpath(mirror.path)
        relation = _relation(real, here)
        if relation:
            raise UsageError(
                f"The mirror {mirror.path} {relation} the run {run}: it would be lost together with it. "
                f"Next: a directory elsewhere, best on another disk.",
                found=mirror.path,
            )
        if real in seen:
            raise UsageError(f"The mirror {mirror.path} is given twice.", found=mirror.path)
        nested = [other for other in seen if urls.is_url(real) and _relation(real, other)]
        if nested:
            raise UsageError(
                f"The mirrors {seen[nested[0]]} and {mirror.path} lie in one another. Next: give each a prefix of its "
                f"own.",
                found=mirror.path,
            )
        seen[real] = mirror.path
        found.append(mirror)
    return tuple(found)


def _relation(mirror: str, run: str) -> str:
    if mirror == run:
        return "is"
    if mirror.startswith(os.path.join(run, "")):
        return "lies in"
    return "holds" if run.startswith(os.path.join(mirror, "")) else ""
