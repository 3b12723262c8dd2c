"""The example service, with a real client on loopback."""

import asyncio
import io
import json
import re
import runpy
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pytest
from PIL import Image

import srnn_zoo
from srnn_zoo.inference.exits import exit_rule
from srnn_zoo.inference.predict import predict
from tests.conftest import ROOT, SKIMAGE

uvicorn = pytest.importorskip("uvicorn")
pytest.importorskip("fastapi")
pytestmark = pytest.mark.slow

MAX_BYTES = 300_000
FILES = ("chelsea.png", "coffee.png", "rocket.jpg", "astronaut.png", "camera.png")


class Reply(NamedTuple):
    """A status, and the JSON that came with it."""

    status: int
    body: dict


class Service:
    """A service in a thread of this process."""

    def __init__(self, app):
        self.server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
        self.thread = threading.Thread(target=self.server.run, daemon=True)

    def __enter__(self):
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)
        self.port = self.server.servers[0].sockets[0].getsockname()[1]
        return self

    def __exit__(self, *_):
        self.server.should_exit = True
        self.thread.join()

    def post(self, body, query="", **headers):
        url = f"http://127.0.0.1:{self.port}/predict{query}"
        try:
            with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=60) as answer:
                return Reply(answer.status, json.load(answer))
        except urllib.error.HTTPError as error:
            return Reply(error.code, json.load(error))

    def get(self, path):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=60) as answer:
            return json.load(answer)


@pytest.fixture(scope="module")
def serve():
    return runpy.run_path(str(ROOT / "examples" / "serve.py"))


@pytest.fixture(scope="module")
def model():
    return srnn_zoo.create_model("srnn_tf_efficientnet_lite0", pretrained=True, img_size=224).eval()


@pytest.fixture(scope="module")
def service(serve, model):
    with Service(serve["create_app"](model, max_bytes=MAX_BYTES)) as service:
        yield service


@pytest.fixture(scope="module")
def images():
    """Files as a client sends them, small enough for the service."""
    found = []
    for name in FILES:
        with Image.open(SKIMAGE / name) as image:
            image.convert("RGB").save(file := io.BytesIO(), "jpeg")
        found.append(file.getvalue())
    return found


def assert_same(reply, prediction):
    assert reply.status == 200, reply
    assert reply.body.get("stopped_at") == prediction.stopped_at
    assert reply.body.get("gmacs") == prediction.gmacs
    assert reply.body["notes"] == list(prediction.notes)
    assert len(reply.body["levels"]) == len(prediction.answers)
    for level, answer in zip(reply.body["levels"], prediction.answers, strict=True):
        assert tuple(level["size"]) == answer.size
        assert [each["label"] for each in level["top"]] == [name for name, _ in answer.top]
        assert [each["probability"] for each in level["top"]] == pytest.approx(
            [value for _, value in answer.top], abs=1e-5
        )


@pytest.mark.parametrize("exit", [None, "confidence:0.5"])
def test_concurrent_requests_get_the_answers_of_predict(exit, service, model, images):
    expected = list(predict(model, images * 2, exit=None if exit is None else exit_rule(exit)))
    with ThreadPoolExecutor(10) as clients:
        replies = list(clients.map(lambda image: service.post(image, f"?exit={exit}" if exit else ""), images * 2))
    for reply, prediction in zip(replies, expected, strict=True):
        assert_same(reply, prediction)
    assert exit is None or {reply.body["stopped_at"] for reply in replies} == {0, 1}


def test_every_request_may_have_a_rule_of_its_own(service, model, images):
    rules = ["level:0", "confidence:2", "level:1", "confidence:0.5"] * 2
    with ThreadPoolExecutor(8) as clients:
        replies = list(clients.map(lambda rule: service.post(images[0], f"?exit={rule}"), rules))
    for reply, rule in zip(replies, rules, strict=True):
        assert_same(reply, next(predict(model, images[0], exit=exit_rule(rule))))


def test_bad_input_gets_one_sentence_and_the_others_go_on(service, images):
    huge = io.BytesIO()
    Image.new("1", (20_000, 10_000)).save(huge, "png")
    cannot = "the image cannot be read: "
    bad = {
        b"a text instead of an image": (422, f"{cannot}not an image that Pillow can read"),
        b"": (422, f"{cannot}not an image that Pillow can read"),
        images[0][: len(images[0]) // 2]: (422, f"{cannot}truncated or damaged"),
        huge.getvalue(): (422, f"{cannot}refused as a decompression bomb"),
        bytes(MAX_BYTES + 1): (413, "the body may have 300,000 bytes"),
    }
    with ThreadPoolExecutor(10) as clients:
        replies = list(clients.map(service.post, [*bad, *images]))
    for reply, (status, sentence) in zip(replies, bad.values(), strict=False):
        assert reply.status == status
        assert reply.body["detail"].startswith(sentence)
        assert "\n" not in reply.body["detail"]
    assert [reply.status for reply in replies[len(bad) :]] == [200] * len(images)


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("?exit=often:0.5", "choose one of"),
        ("?exit=confidence:much", "takes a number after a colon"),
        ("?exit=confidence:0.9,0.8,0.7", "threshold"),
        ("?exit=calibrated", "calibrate"),
        ("?exit=level:0&budget=1", "not both"),
        ("?budget=0.0001", "GMACs"),
        ("?budget=much", "budget takes a number of GMACs; got 'much'"),
        ("?budget=nan", "nan"),
    ],
)
def test_a_rule_that_there_is_not_is_refused(query, sentence, service, images):
    reply = service.post(images[0], query)
    assert reply.status == 422
    assert re.search(sentence, reply.body["detail"]), reply


def test_a_form_is_told_how_to_send_the_image(service, images):
    reply = service.post(images[0], **{"Content-Type": "multipart/form-data; boundary=x"})
    assert reply.status == 415
    assert "--data-binary" in reply.body["detail"]


def test_a_model_that_fails_answers_500_and_the_next_request_is_answered(serve, images):
    model = srnn_zoo.create_model("srnn_test_resnet", num_classes=3, img_size=64).eval()

    def fail(*_):
        failing.remove()
        raise RuntimeError("out of memory")

    with Service(serve["create_app"](model)) as service:
        failing = model.fc.register_forward_hook(fail)
        assert service.post(images[0]) == (500, {"detail": "the model failed; the log of the service says how"})
        assert service.post(images[0]).status == 200


def test_more_than_may_wait_are_told_to_come_back(serve, images):
    slow = srnn_zoo.create_model("srnn_test_resnet", num_classes=3, img_size=64).eval()
    slow.fc.register_forward_hook(lambda *_: time.sleep(0.5))
    with Service(serve["create_app"](slow, batch_size=1, max_waiting=1)) as service, ThreadPoolExecutor(6) as clients:
        replies = list(clients.map(service.post, images[:1] * 6))
    statuses = [reply.status for reply in replies]
    assert set(statuses) == {200, 503}


def test_the_service_says_what_it_serves(service):
    assert service.get("/health") == {"levels": [[112, 112], [224, 224]], "num_classes": 1000, "waiting": 0}


def small():
    return srnn_zoo.create_model("srnn_test_resnet", num_classes=3, img_size=64).eval()


def test_a_service_that_stops_tells_those_that_wait(serve):
    async def stopped():
        batches = serve["Batches"](small(), 1, 4, 1)
        asked = [asyncio.create_task(batches.ask(serve["Question"](b"", "", None))) for _ in range(2)]
        await asyncio.sleep(0)
        batches.stop()
        return await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), 10)

    assert [(said.status_code, said.detail) for said in asyncio.run(stopped())] == [
        (503, "the service is stopping")
    ] * 2


def test_where_no_more_may_wait_the_image_is_not_read(serve):
    app = serve["create_app"](small(), max_waiting=1)
    sent, image = [], {"type": "http.request", "body": b"", "more_body": False}

    async def never():
        raise AssertionError("the body was read")

    async def ask(receive):
        scope = {"type": "http", "method": "POST", "path": "/predict", "query_string": b"", "headers": []}

        async def send(message):
            sent.append(message)

        await app(scope, receive, send)

    async def once():
        return image

    async def both():  # no lifespan: nobody answers, so the first waits
        first = asyncio.create_task(ask(once))
        for _ in range(50):
            await asyncio.sleep(0.01)
        await ask(never)
        first.cancel()

    asyncio.run(both())
    assert sent[0]["status"] == 503
