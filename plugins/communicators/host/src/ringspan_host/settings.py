"""What `[plugins.host]` in `ringspan.toml` may say."""

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["HostSettings"]


class HostSettings(BaseModel):
    """The plugin's section. A layout of a call's own goes before `chunk`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    chunk: int = Field(default=65_536, ge=1, description="tokens of one shard, at most")
    device: str = Field(
        default="auto",
        pattern=r"^(auto|[a-z]+(:\d+)?)$",
        description="where tensors in host memory are computed on: a torch device, or 'auto': "
        "the current CUDA device where there is one, else the CPU",
    )
