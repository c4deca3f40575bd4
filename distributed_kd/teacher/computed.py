"""What a cache's targets are computed in: written down by the capture's first replica, and held to by all others.

`teachers.0.dtype: auto` is bfloat16 on one kind of processor and float32 on another. A replica that joins later, a
capture that goes on elsewhere and a repair compute in the dtype that the first shard was computed in.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from distributed_kd.errors import RequestError
from distributed_kd.recipe import Teacher
from distributed_kd.store.filesystem import Store

NAME = "computed.json"
_MAXIMUM_BYTES = 4096


@dataclass(frozen=True)
class Computed:
    device: Literal["cpu", "cuda"]
    dtype: Literal["float32", "bfloat16", "float16"]

    @staticmethod
    def here(teacher: Teacher) -> Computed:
        """What this process would compute in."""
        from distributed_kd.models.load import choose_device, resolve_dtype

        device = choose_device()
        dtype = str(resolve_dtype(teacher.dtype, device)).removeprefix("torch.")
        return _COMPUTED.validate_python({"device": device.type, "dtype": dtype})

    @staticmethod
    def read(store: Store) -> Computed | None:
        """Of the cache in `store`; None where no replica has begun it. Raises `RequestError` where it does not say."""
        try:
            return _COMPUTED.validate_json(store.read(NAME, at_most=_MAXIMUM_BYTES))
        except FileNotFoundError:
            return None
        except ValidationError as error:
            raise RequestError(
                f"{store.uri}/{NAME} does not say in which dtype the cache was begun; write it there as "
                '{"device": "cuda", "dtype": "bfloat16"}, or delete the cache to capture it again'
            ) from error

    def put(self, store: Store) -> None:
        store.put(NAME, json.dumps(asdict(self)).encode())


_COMPUTED = TypeAdapter(Computed)
