"""The settings that core understands, in `ringspan.toml`, `[tool.ringspan]` and `RINGSPAN_*`."""

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Settings"]


class Settings(BaseModel):
    """Core's section. A name is a provider's or a plugin's; a list is an order of preference."""

    model_config = ConfigDict(extra="forbid")

    backend: str | list[str] = Field("auto", description="attention backend")
    communicator: str | list[str] = Field("auto", description="communicator")
    blocked: list[str] = Field([], description="plugins that are not even imported")
    autotune: bool = Field(False, description="measure eligible backends instead of ranking them")
