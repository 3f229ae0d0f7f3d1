"""KServe's Python SDK, as far as the server uses it."""

from __future__ import annotations

import sys

from ov_recipro.errors import OptionError

_arguments, sys.argv = sys.argv, sys.argv[:1]  # the SDK would parse them as its own
try:
    from kserve import Model
    from kserve.errors import InvalidInput, ModelNotFound, ModelNotReady
    from kserve.model_repository import ModelRepository
    from kserve.protocol.dataplane import DataPlane
    from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import (
        add_GRPCInferenceServiceServicer_to_server as add_grpc_servicer,
    )
    from kserve.protocol.grpc.servicer import InferenceServicer
    from kserve.protocol.infer_type import (
        InferInput,
        InferOutput,
        InferRequest,
        InferResponse,
        RequestedOutput,
    )
    from kserve.protocol.model_repository_extension import ModelRepositoryExtension
    from kserve.protocol.rest.v1_endpoints import register_v1_endpoints
    from kserve.protocol.rest.v2_endpoints import register_v2_endpoints
except ImportError as error:
    raise OptionError(
        f"'serve' needs KServe's Python SDK: pip install 'ov-recipro[serve]' ({error})."
    ) from error
finally:
    sys.argv = _arguments

__all__ = [
    "DataPlane",
    "InferInput",
    "InferOutput",
    "InferRequest",
    "InferResponse",
    "InferenceServicer",
    "InvalidInput",
    "Model",
    "ModelNotFound",
    "ModelNotReady",
    "ModelRepository",
    "ModelRepositoryExtension",
    "RequestedOutput",
    "add_grpc_servicer",
    "register_v1_endpoints",
    "register_v2_endpoints",
]
