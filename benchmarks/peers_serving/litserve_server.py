"""The predictor of this project behind LitServe: one API process, one worker process, as LitServe's defaults have it.

.bench/venv-litserve/bin/python -m benchmarks.peers_serving.litserve_server --bundle BUNDLE --port 8001 [--batch 32]
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import litserve

from next_behavior.serving.predictor import Predictor


class Answers(litserve.LitAPI):
    """Answers questions as POST /v1/predict does: the same body, the same list of answers."""

    def __init__(self, bundle: Path, **options: Any) -> None:
        super().__init__(api_path="/v1/predict", **options)
        self.bundle = bundle

    def setup(self, device: str) -> None:
        self.predictor = Predictor.load(self.bundle)

    # LitServe reads the annotation, as FastAPI does: without one it takes any JSON.
    def decode_request(self, request):
        return self.predictor.ask(request.pop("events"), **request)

    def predict(self, x: Any) -> Any:
        return self.predictor.answers([x])[0]

    def encode_response(self, output: list[dict[str, Any]]) -> dict[str, Any]:
        return {"answers": output, "model": self.predictor.info.revision}


class AnswersTogether(Answers):
    """The same in batches of what waits."""

    def batch(self, inputs: list[Any]) -> list[Any]:
        return inputs

    def predict(self, x: Any) -> Any:
        return self.predictor.answers(x)

    def unbatch(self, output: list[Any]) -> list[Any]:
        return output


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--batch", type=int, default=1, help="requests that a worker may answer together")
    args = parser.parse_args()
    api = Answers(args.bundle) if args.batch == 1 else AnswersTogether(args.bundle, max_batch_size=args.batch)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=args.port, num_api_servers=1, generate_client_file=False, log_level="warning")


if __name__ == "__main__":
    main()
