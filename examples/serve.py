"""Serve an SRNN over HTTP: `python examples/serve.py --model runs/flowers/best`.

    curl --data-binary @photo.jpg 'http://127.0.0.1:8000/predict?exit=confidence:0.8'

Requests that arrive while the model works wait, and then share a batch. Needs `pip install "srnn-zoo[serve]"`.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import PIL.Image
import torch
import uvicorn
from fastapi import FastAPI, HTTPException, Request

import srnn_zoo
from srnn_zoo.datasets.images import Skipped
from srnn_zoo.inference.exits import ExitRule
from srnn_zoo.inference.predict import Prediction, predict
from srnn_zoo.inference.rows import as_object

Answer: TypeAlias = Prediction | Skipped | None  # None where the model failed


class Question(NamedTuple):
    """An image file, and when it may stop."""

    image: bytes
    rule: str  # what asked for the rule: images of one rule share a batch
    exit: ExitRule | None


class Batches:
    """Answers questions in batches: those that arrive while the model works wait for the next one."""

    def __init__(self, model: srnn_zoo.SRNN, batch_size: int, max_waiting: int, topk: int) -> None:
        self.model = model
        self.batch_size = batch_size
        self.topk = topk
        self.waiting: asyncio.Queue[tuple[Question, asyncio.Future[Answer]]] = asyncio.Queue(max_waiting)
        self.open: set[asyncio.Future[Answer]] = set()

    def check_room(self) -> None:
        """HTTPException where no more requests may wait."""
        if self.waiting.full():
            raise HTTPException(503, "too many requests are waiting; try again", {"Retry-After": "1"})

    def stop(self) -> None:
        """Tell all that still wait that nobody answers any more."""
        for answer in self.open:
            if not answer.done():
                answer.set_exception(HTTPException(503, "the service is stopping"))

    async def ask(self, question: Question) -> Answer:
        """The answer, when its batch is ready."""
        self.check_room()
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self.open.add(answer)
        answer.add_done_callback(self.open.discard)
        self.waiting.put_nowait((question, answer))
        return await answer

    async def run(self) -> None:
        """Answer for ever; where the model fails, its batch has no answer, and the next one goes on."""
        while True:
            batch = [await self.waiting.get()]
            while len(batch) < self.batch_size and not self.waiting.empty():
                batch.append(self.waiting.get_nowait())
            try:
                found = await asyncio.to_thread(self.answers, [question for question, _ in batch])
            except Exception:
                logging.getLogger("uvicorn.error").exception("a batch of %d failed", len(batch))
                found = [None] * len(batch)
            for (_, answer), result in zip(batch, found, strict=True):
                if not answer.done():  # else its request was given up
                    answer.set_result(result)

    def answers(self, questions: Sequence[Question]) -> list[Answer]:
        """The answer to every question, in order."""
        found: dict[int, Answer] = {}
        for rule in dict.fromkeys(question.rule for question in questions):
            alike = [index for index, question in enumerate(questions) if question.rule == rule]
            images = [questions[index].image for index in alike]
            options = {"exit": questions[alike[0]].exit, "topk": self.topk, "batch_size": len(alike)}
            found |= zip(alike, predict(self.model, images, **options), strict=True)
        return [found[index] for index in range(len(questions))]


def create_app(
    model: srnn_zoo.SRNN,
    exit: str | None = None,
    *,
    batch_size: int = 8,
    max_waiting: int = 64,
    max_bytes: int = 20_000_000,
    topk: int = 5,
) -> FastAPI:
    """The service of one model; arguments as the command's options."""
    model = srnn_zoo.for_inference(model.eval())
    batches = Batches(model, batch_size, max_waiting, topk)
    usual = rule_of(model, exit, None)  # an error now, and not at the first request

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        worker = asyncio.create_task(batches.run())
        yield
        worker.cancel()
        batches.stop()

    app = FastAPI(title="srnn-zoo", version=srnn_zoo.__version__, lifespan=lifespan)

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"levels": model.level_sizes(), "num_classes": model.num_classes, "waiting": batches.waiting.qsize()}

    @app.post("/predict")
    async def answer(request: Request, exit: str | None = None, budget: str | None = None) -> dict[str, Any]:
        batches.check_room()  # before an image is read that nobody would look at
        image = await body_of(request, max_bytes)
        try:
            rule = usual if exit is None and budget is None else rule_of(model, exit, budget)
        except ValueError as error:
            raise HTTPException(422, str(error)) from None
        result = await batches.ask(Question(image, f"{exit} {budget}", rule))
        if isinstance(result, Skipped):
            raise HTTPException(422, f"the image cannot be read: {result.reason.partition(': ')[2]}")
        if result is None:
            raise HTTPException(500, "the model failed; the log of the service says how")
        return {key: value for key, value in as_object(result, model.task).items() if key != "path"}

    return app


def load(name: str) -> srnn_zoo.SRNN:
    """A model by the name of a network, a saved folder or a Hub id."""
    if Path(name).is_dir() or "/" in name:
        return srnn_zoo.SRNN.from_pretrained(name)
    return srnn_zoo.create_model(name, pretrained=True)


def rule_of(model: srnn_zoo.SRNN, exit: str | None, budget: str | None) -> ExitRule | None:
    """When images stop, from the text of a rule, `calibrated`, or a budget in GMACs; None for all levels."""
    if exit is not None and budget is not None:
        raise ValueError("give exit or budget, not both")
    if budget is not None:
        try:
            gmacs = float(budget)
        except ValueError:
            raise ValueError(f"budget takes a number of GMACs; got {budget!r}") from None
        return srnn_zoo.budget_rule(model, gmacs)
    if exit is None:
        return None
    return srnn_zoo.Anytime(model, None if exit == "calibrated" else exit).exit


async def body_of(request: Request, max_bytes: int) -> bytes:
    """The bytes of the image, as they arrive, but no more than so many."""
    if request.headers.get("content-type", "").startswith(("multipart/", "application/json")):
        raise HTTPException(415, "the image is the body itself, as `curl --data-binary @photo.jpg` sends it")
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > max_bytes:
            raise HTTPException(413, f"the body may have {max_bytes:,} bytes, and this one has more")
    return bytes(body)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="srnn_tf_efficientnet_lite0", help="a name, a saved folder or a Hub id")
    parser.add_argument("--exit", help="when an image stops, such as confidence:0.9, or calibrated; by default never")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="of the CPU, for the model")
    parser.add_argument("--batch-size", type=int, default=8, help="images in a batch at most")
    parser.add_argument(
        "--max-waiting", type=int, default=64, help="requests that may wait; more are told to come back"
    )
    parser.add_argument("--max-bytes", type=int, default=20_000_000, help="of an image file")
    parser.add_argument("--max-megapixels", type=float, default=50, help="of an image")
    args = parser.parse_args()

    srnn_zoo.keep_freed_memory()
    if args.threads:
        torch.set_num_threads(args.threads)
    PIL.Image.MAX_IMAGE_PIXELS = int(args.max_megapixels * 1e6 / 2)  # Pillow refuses twice as many
    try:
        model = load(args.model).to(args.device)
        rule_of(model, args.exit, None)
    except (OSError, RuntimeError, ValueError) as error:
        parser.error(str(error))
    limits = {"batch_size": args.batch_size, "max_waiting": args.max_waiting, "max_bytes": args.max_bytes}
    uvicorn.run(create_app(model, args.exit, **limits), host=args.host, port=args.port)


if __name__ == "__main__":
    main()
