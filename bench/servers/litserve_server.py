"""Rival: LitServe, FastAPI front processes and model workers behind queues, with dynamic batching.

POST /predict: {"inputs": …} → {"outputs": […]}. Bodies are JSON only, so an image is base64 of its bytes inside JSON.
"""

import base64
import os

import bench_models
import litserve


class Api(litserve.LitAPI):
    def setup(self, device):  # noqa: ARG002, LitServe's own signature
        self.runner = bench_models.Runner()

    def decode_request(self, request):
        x = request["inputs"]
        return bench_models.image_from_bytes(base64.b64decode(x)) if isinstance(x, str) else x

    def batch(self, inputs):
        return inputs

    def unbatch(self, output):
        return output

    def predict(self, x):
        return self.runner.rows(x) if bench_models.MAX_BATCH > 1 else self.runner.rows([x])[0]

    def encode_response(self, output):
        return {"outputs": output}


if __name__ == "__main__":
    api = Api(
        max_batch_size=bench_models.MAX_BATCH,
        batch_timeout=bench_models.DELAY_MS / 1000 if bench_models.MAX_BATCH > 1 else 0,
    )
    server = litserve.LitServer(
        api, accelerator="cpu", workers_per_device=bench_models.WORKERS, timeout=60, fast_queue=True
    )
    server.run(
        host="127.0.0.1",
        port=bench_models.PORT,
        num_api_servers=int(os.environ.get("BENCH_API_SERVERS", "1")),
        log_level="error",
        access_log=False,
        generate_client_file=False,
    )
