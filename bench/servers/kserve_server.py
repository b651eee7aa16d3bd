"""Rival: the KServe Python SDK (kserve.Model on FastAPI and uvicorn).

It has no batcher of its own (KServe batches in a sidecar), so requests run one at a time in each worker process.
POST /v1/models/bench:predict (V1 JSON) and /v2/models/bench/infer (V2, JSON or binary tensors).
"""

import logging

import bench_models
import torch
from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer


class Bench(Model):
    def __init__(self):
        super().__init__("bench")
        self.runner = None

    def load(self):
        self.runner = bench_models.Runner()
        self.ready = True
        return True

    async def predict(self, payload, headers=None, response_headers=None):  # noqa: ARG002, the SDK's own signature
        if self.runner is None:  # a worker process of its own
            self.load()
        if not isinstance(payload, InferRequest):
            return {"predictions": self.runner.rows(payload["instances"])}
        rows = self.runner.tensor(list(torch.from_numpy(payload.inputs[0].as_numpy().copy())))
        output = InferOutput("y", list(rows.shape), "FP32")
        output.set_data_from_numpy(rows.numpy(), binary_data=True)
        return InferResponse(payload.id or "0", self.name, [output], use_binary_outputs=payload.use_binary_outputs)


if __name__ == "__main__":
    logging.disable(logging.INFO)
    model = Bench()
    model.load()
    ModelServer(
        http_port=bench_models.PORT, workers=bench_models.WORKERS, enable_grpc=False, enable_latency_logging=False
    ).start([model])
