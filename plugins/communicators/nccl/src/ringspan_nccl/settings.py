"""What `[plugins.nccl]` in `ringspan.toml` may say."""

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["NcclSettings"]


class NcclSettings(BaseModel):
    """The plugin's section. Ranks may differ in it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    run_ahead: int = Field(
        default=8,
        ge=1,
        description="posts that may be in flight before the host waits for the oldest of them",
    )
    blocking: bool = Field(
        default=False,
        description="whether waiting for messages holds the host until they have arrived, so that "
        "every failure is an error by name",
    )
