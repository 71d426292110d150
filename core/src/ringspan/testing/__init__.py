"""What tests measure Ringspan and its plugins with; written apart from the library's own plan.

- `formula`: the formula in float64, evaluated literally, with its gradients.
- `multiplicity`: how often a query sees a key, literally from the definition of each pattern.
- `accuracy`: the one rule that says whether a result is exact for its dtype.
- `configuration`: one problem as data, with its random tensors.
- `strategies`: hypothesis strategies for configurations that have broken others.
- `toy`, `toy_communicator`: a backend and a communicator of a few lines, to test what is above.
- `toy_whole`: a backend of a few more, which takes branches and moves rows.
- `delayed`: a communicator whose messages take a set time.
- `site`: plugins that are installed for a while.
- `stand_ins`: CUDA packages computed on a CPU, to test their adapters.
- `suites`: the conformance kit, one class of standard tests per kind of provider.
- `ranks`: real processes, one per rank.
- `loopback`: threads, one per rank: many world sizes in no time.
- `pytest_plugin`: guards the standard tests, and reports what they found.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ringspan.testing.accuracy import Measurement, Yardstick, assert_exact, measure, yardstick
    from ringspan.testing.formula import ReferenceResult, reference
    from ringspan.testing.suites.adapter import CudaAdapterSuite
    from ringspan.testing.suites.attention_backend import AttentionBackendSuite
    from ringspan.testing.suites.base import omitted, replaces
    from ringspan.testing.suites.communicator import CommunicatorSuite
    from ringspan.testing.suites.ordering import GeometricOrderingSuite, OrderingSuite
    from ringspan.testing.suites.virtual_communicator import VirtualCommunicatorSuite
    from ringspan.testing.toy_whole import ToyWhole

_HOMES = {
    "AttentionBackendSuite": "suites.attention_backend",
    "CommunicatorSuite": "suites.communicator",
    "CudaAdapterSuite": "suites.adapter",
    "GeometricOrderingSuite": "suites.ordering",
    "Measurement": "accuracy",
    "OrderingSuite": "suites.ordering",
    "ReferenceResult": "formula",
    "ToyWhole": "toy_whole",
    "VirtualCommunicatorSuite": "suites.virtual_communicator",
    "Yardstick": "accuracy",
    "assert_exact": "accuracy",
    "measure": "accuracy",
    "omitted": "suites.base",
    "reference": "formula",
    "replaces": "suites.base",
    "yardstick": "accuracy",
}

__all__ = [
    "AttentionBackendSuite",
    "CommunicatorSuite",
    "CudaAdapterSuite",
    "GeometricOrderingSuite",
    "Measurement",
    "OrderingSuite",
    "ReferenceResult",
    "ToyWhole",
    "VirtualCommunicatorSuite",
    "Yardstick",
    "assert_exact",
    "measure",
    "omitted",
    "reference",
    "replaces",
    "yardstick",
]


def __getattr__(name: str) -> Any:
    # Lazy (PEP 562): pytest loads the plugin in this package in every session of its users, which
    # must not load torch; and the formula must not need pytest.
    if name not in _HOMES:
        raise AttributeError(f"module 'ringspan.testing' has no attribute {name!r}")
    try:
        value = getattr(import_module(f"ringspan.testing.{_HOMES[name]}"), name)
    except ModuleNotFoundError as error:
        if error.name not in ("pytest", "hypothesis"):
            raise
        from ringspan.contracts.errors import RingspanError

        raise RingspanError(
            f"ringspan.testing.{name}",
            expected="pytest and hypothesis to be installed",
            got=f"no {error.name}",
            remedy="pip install 'ringspan-core[testing]'",
        ) from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
