"""Rival: mosec, an HTTP front and batcher in Rust, Python worker processes over a Unix socket.

POST /inference: {"inputs": …} → {"outputs": […]}; float32 bytes → float32 bytes for resnet18. Address, port, timeout and
log level are mosec's own arguments.
"""

import bench_models
import orjson
from mosec import Server, Worker

IS_BINARY = bench_models.WORKLOAD == "resnet18"
IS_BATCHED = bench_models.MAX_BATCH > 1


class Model(Worker):
    resp_mime_type = bench_models.BINARY if IS_BINARY else "application/json"

    def __init__(self):
        super().__init__()
        runner = bench_models.Runner()
        self.run = runner.raw if IS_BINARY else runner.rows

    def deserialize(self, data):
        return bench_models.image_from_bytes(data) if IS_BINARY else orjson.loads(data)["inputs"]

    def serialize(self, data):
        return data if IS_BINARY else orjson.dumps({"outputs": data})

    def forward(self, data):
        return self.run(data) if IS_BATCHED else self.run([data])[0]


if __name__ == "__main__":
    server = Server()
    server.append_worker(
        Model,
        num=bench_models.WORKERS,
        max_batch_size=bench_models.MAX_BATCH,
        max_wait_time=max(1, round(bench_models.DELAY_MS)) if IS_BATCHED else 0,
    )
    server.run()
