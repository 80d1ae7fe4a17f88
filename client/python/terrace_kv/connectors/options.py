"""Options of a connector as an engine's configuration gives them: checked, and named when wrong."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from terrace_kv import errors


@dataclasses.dataclass(frozen=True)
class PagedOptions:
    """Options of the connectors of paged engines."""

    socket: str | None = None  # of the daemon; None: as terrace_kv.open
    tenant: str | None = None
    namespace: str = ""  # separates what would be shared: caches of different namespaces never mix
    save: bool = True  # store what was computed
    load: bool = True  # look for what is stored
    stall_s: float = 0.5  # a load without progress for so long has failed

    @classmethod
    def read(cls, given: Mapping[str, object]) -> PagedOptions:
        """Raises InvalidArgument: an unknown name (all are listed), a value of another type."""
        known = {field.name: field for field in dataclasses.fields(cls)}
        for name, value in given.items():
            if name not in known:
                raise errors.InvalidArgument(
                    f"kv_connector_extra_config.{name}: no such option; expected "
                    f"{', '.join(sorted(known))}")
            kind = {"save": bool, "load": bool, "stall_s": (int, float)}.get(name, str)
            if not isinstance(value, kind) or (name == "stall_s" and isinstance(value, bool)):
                expected = getattr(kind, "__name__", "a number")
                raise errors.InvalidArgument(
                    f"kv_connector_extra_config.{name}: {value!r}; expected {expected}")
        options = cls(**given)
        if not 0.01 <= options.stall_s <= 60:
            raise errors.InvalidArgument(
                f"kv_connector_extra_config.stall_s: {options.stall_s}; expected 0.01 .. 60")
        return options
