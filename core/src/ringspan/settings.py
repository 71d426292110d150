"""The settings that core understands, in `ringspan.toml`, `[tool.ringspan]` and `RINGSPAN_*`."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Settings"]


class Settings(BaseModel):
    """Core's section. A name is a provider's or a plugin's; a list is an order of preference."""

    model_config = ConfigDict(extra="forbid")

    backend: str | list[str] = Field("auto", description="attention backend")
    communicator: str | list[str] = Field("auto", description="communicator")
    blocked: list[str] = Field([], description="plugins that are not even imported")
    autotune: Literal["first-run", "off"] = Field(
        "off", description="measure eligible backends on a problem's first run, or rank them"
    )
    autotune_file: str | None = Field(
        None,
        min_length=1,
        description="where measured times are kept (default: in the user's folder of caches)",
    )
    on_fault: Literal["raise", "next"] = Field(
        "raise", description="when a kernel fails: raise, or go on with the next backend"
    )
    fused: str = Field(
        "auto",
        description="whose kernels gather and merge rows: a provider's; auto: any that can, on "
        "GPUs; off: torch's operators",
    )
    debug: bool = Field(
        False,
        description="check every message of a ring by a checksum, and every result for NaN",
    )
    gradient_wire: Literal["wide", "input"] = Field(
        "wide",
        description="dtype of travelling gradients: float32 (float64 for float64), or the input's",
    )
    message_bytes: int | None = Field(
        None,
        ge=1,
        description="bytes of key/value rows in one message; a larger step travels in parts "
        "(default: 1 MiB between CPUs, 32 MiB between other devices)",
    )
