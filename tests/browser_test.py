"""The browser example: a real page, real strokes, the very model."""

import base64
import importlib
import itertools
import json
import os
import pathlib
import shutil
import subprocess
import sys
import threading

import keras
import numpy as np
import pytest

EXAMPLE = pathlib.Path(__file__).parent.parent / "examples" / "browser.py"
# Strokes as points between 0 and 1.
STROKES = {
    1: [[(0.52, 0.15), (0.48, 0.85)]],
    7: [[(0.25, 0.2), (0.72, 0.2), (0.45, 0.85)]],
    0: [
        [
            (0.5 + 0.22 * np.sin(angle), 0.5 - 0.33 * np.cos(angle))
            for angle in np.linspace(0, 2 * np.pi, 25)
        ]
    ],
}

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "jax",
    reason="Doesn't depend on the backend and takes half a minute: on jax.",
)


class Chromium:
    """One page in a headless Chromium, by the DevTools protocol.

    The protocol runs through pipes, which needs no driver and no port.
    """

    def __init__(self, program, folder):
        read, self.to_chromium = os.pipe()
        self.from_chromium, write = os.pipe()
        self.process = subprocess.Popen(
            # Chromium reads from descriptor 3 and writes to descriptor 4.
            [
                *("bash", "-c", f'exec "$@" 3<&{read} 4>&{write}', "bash"),
                *(program, "--headless=new", "--remote-debugging-pipe"),
                # The sandbox isn't there for root, nor in most containers.
                *("--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
                *(f"--user-data-dir={folder}", "--window-size=900,560"),
            ],
            pass_fds=(read, write),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(read)
        os.close(write)
        self.answers = os.fdopen(self.from_chromium, "rb")
        self.numbers = itertools.count(1)
        self.session = None

    def new_page(self):
        target = self.send("Target.createTarget", url="about:blank")
        self.session = self.send(
            "Target.attachToTarget", targetId=target["targetId"], flatten=True
        )["sessionId"]

    def send(self, method, **params):
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.to_chromium, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next_answer()
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]

    def _next_answer(self):
        content = bytearray()
        while (byte := self.answers.read(1)) != b"\0":
            assert byte, "Chromium ended"
            content += byte
        return json.loads(content)

    def run(self, script):
        """What an expression of JavaScript is, promises included."""
        answer = self.send(
            "Runtime.evaluate",
            expression=script,
            awaitPromise=True,
            returnByValue=True,
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def open(self, url):
        self.send("Page.enable")
        self.send("Page.navigate", url=url)
        self.wait_for("document.readyState === 'complete'")

    def wait_for(self, condition, seconds=20):
        self.run(
            f"""new Promise((resolve, reject) => {{
                const end = performance.now() + 1000 * {seconds};
                const look = () => {{
                    if ({condition}) resolve();
                    else if (performance.now() > end)
                        reject(new Error("no " + {json.dumps(condition)}));
                    else setTimeout(look, 20);
                }};
                look();
            }})"""
        )

    def text(self, name):
        return self.run(f"document.getElementById('{name}').textContent")

    def draw(self, strokes):
        left, top, size = self.run(
            "(({x, y, width}) => [x, y, width])"
            "(document.getElementById('pad').getBoundingClientRect())"
        )
        for stroke in strokes:
            # Small and aside: the page has to find it.
            points = [(x / 2 + 0.15, y / 2 + 0.15) for x, y in stroke]
            kinds = ["mousePressed"] + ["mouseMoved"] * (len(points) - 1)
            for kind, (x, y) in zip(kinds, points, strict=True):
                self._mouse(kind, left + x * size, top + y * size)
            self._mouse("mouseReleased", left + x * size, top + y * size)

    def _mouse(self, kind, x, y):
        self.send(
            "Input.dispatchMouseEvent",
            type=kind,
            x=x,
            y=y,
            button="left",
            buttons=int(kind != "mouseReleased"),
            clickCount=1,
        )

    def press(self, key):
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=key)

    def screenshot(self):
        return base64.b64decode(self.send("Page.captureScreenshot")["data"])

    def close(self):
        self.process.kill()
        self.process.wait()
        self.answers.close()
        os.close(self.to_chromium)


@pytest.fixture(scope="module")
def example():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLE.parent)
        # Writing bytecode into examples/ isn't wanted.
        patch.setattr(sys, "dont_write_bytecode", True)
        return importlib.import_module(EXAMPLE.stem)


@pytest.fixture(scope="module")
def page(example, tmp_path_factory):
    """The page with its runtime, without a model."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm isn't installed, which fetches LiteRT's runtime")
    folder = tmp_path_factory.mktemp("page")
    once = ("--silent", "--fetch-retries=0", "--fetch-timeout=10000")
    try:
        example.make_page(folder, npm, *once)
    except subprocess.CalledProcessError:
        pytest.skip("npm has no @litertjs/core, neither kept nor by network")
    server = example.make_server(folder, 0)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield folder, f"http://localhost:{server.server_port}/"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    names = ("chromium", "chromium-browser", "google-chrome")
    program = next(filter(None, map(shutil.which, names)), None)
    if program is None:
        pytest.skip("Chromium isn't installed")
    browser = Chromium(program, tmp_path_factory.mktemp("profile"))
    try:
        browser.new_page()
        yield browser
    finally:
        browser.close()


def upscaled_digits():
    """scikit-learn's digits as MNIST has its own: 20 long, centred."""
    from scipy import ndimage
    from sklearn.datasets import load_digits

    small, digits = load_digits(return_X_y=True)
    images = np.zeros((len(small), 28, 28, 1), "float32")
    for image, pixels in zip(images, small.reshape(-1, 8, 8), strict=True):
        rows, columns = (np.flatnonzero(pixels.max(i) > 4) for i in (1, 0))
        cut = pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        large = ndimage.zoom(cut, 20 / max(cut.shape), order=1)
        large = np.clip(large * 24 - 128, 0, 255)
        y, x = ndimage.center_of_mass(large + 1e-9)
        top = int(np.clip(round(14 - y), 0, 28 - large.shape[0]))
        left = int(np.clip(round(14 - x), 0, 28 - large.shape[1]))
        height, width = large.shape
        image[top : top + height, left : left + width, 0] = large
    return images, digits.astype("int32")


@pytest.fixture(scope="module")
def artifacts(example, tmp_path_factory):
    """One student, in float and in integers."""
    keras.utils.set_random_seed(0)
    train = example.Examples(*upscaled_digits())
    student = example.make_network((8, 16, 32), 0, 0)
    student.compile(**example.compile_arguments(1e-2, 5 * 28))
    student.fit(*train, batch_size=64, epochs=5, verbose=0)
    folder = tmp_path_factory.mktemp("models")
    return {
        scheme: example.export(
            student, train, folder / f"{scheme}.tflite", scheme
        )
        for scheme in ("float32", "int8")
    }


@pytest.mark.parametrize(
    ("scheme", "tolerance"),
    # Integers that are rounded to the other side are one step of the output's
    # scale apart.
    [("float32", 1e-4), ("int8", 0.05)],
)
def test_reads_what_is_drawn_as_python_does(
    scheme, tolerance, page, chromium, artifacts
):
    folder, url = page
    artifact = artifacts[scheme]
    shutil.copy(artifact.path, folder / "student.tflite")
    chromium.open(url)
    chromium.run("import('/digit.js').then((page) => page.ready)")
    assert f"{artifact.size / 1024:.1f} KiB" in chromium.text("facts")
    for strokes in STROKES.values():
        chromium.draw(strokes)
        reading = settled(chromium)
        pixels = np.float32([reading["pixels"][str(i)] for i in range(784)])
        image = pixels.reshape(1, 28, 28, 1)
        assert_looks_like(strokes, image[0, ..., 0])
        expected = softmax(artifact.predict(image)[0])
        np.testing.assert_allclose(
            reading["probabilities"], expected, rtol=0, atol=tolerance
        )
        digit = np.argmax(reading["probabilities"])
        assert chromium.text("digit") == str(digit)
        highest = chromium.run(
            "document.querySelector('#bars .highest').textContent"
        )
        assert highest.startswith(str(digit))
        assert highest.endswith(" %")
        assert 0 < reading["milliseconds"] < 100
        chromium.press("Escape")
        assert settled(chromium)["pixels"] is None
        assert chromium.text("digit") == "–"
    assert not chromium.run("document.getElementById('error').textContent")


def settled(chromium):
    """What the page read, once nothing is left to read."""
    return chromium.run(
        """(async () => {
            const { reading } = await import("/digit.js");
            for (let i = 0; i < 10; i++)
                await new Promise((frame) => requestAnimationFrame(frame));
            return reading;
        })()"""
    )


def softmax(logits):
    powers = np.exp(logits - logits.max())
    return powers / powers.sum()


def assert_looks_like(strokes, image):
    """As MNIST's images: 20 long, centred by mass; and as it was drawn."""
    rows, columns = (np.flatnonzero(image.max(i)) for i in (1, 0))
    assert max(np.ptp(rows), np.ptp(columns)) + 1 == 20
    assert 200 < image.max() <= 255
    places = np.arange(28)
    centre = np.array([image.sum(i) @ places for i in (1, 0)]) / image.sum()
    assert np.abs(centre - 14).max() <= 0.51
    expected = drawn(strokes, centre)
    assert np.corrcoef(image.ravel(), expected.ravel())[0, 1] > 0.97


def drawn(strokes, centre):
    """The strokes with their centre of mass there, without a canvas."""
    # The page's lines are 7 % of its field, and the drawing half of that.
    width, fine = 0.07 * 2, 8
    points = np.concatenate(strokes)
    length = np.ptp(points, 0).max() + width
    scale = 20 / length * fine
    y, x = np.indices((28 * fine, 28 * fine))
    away = np.full(x.shape, np.inf)
    start = points.min(0) - 0.05 * length
    for stroke in strokes:
        for a, b in itertools.pairwise(np.array(stroke)):
            for point in np.linspace(a, b, 60):
                px, py = (point - start + width / 2) * scale
                away = np.minimum(away, np.hypot(x - px, y - py))
    ink = (away < width / 2 * scale).astype("float32")
    places = np.arange(28 * fine)
    for axis in (0, 1):
        mass = ink.sum(1 - axis) @ places / ink.sum()
        wanted = (centre[axis] + 0.5) * fine - 0.5
        ink = np.roll(ink, round(wanted - mass), axis)
    return 255 * ink.reshape(28, fine, 28, fine).mean((1, 3))


def test_many_inferences_take_no_more_memory(page, chromium, artifacts):
    folder, url = page
    shutil.copy(artifacts["float32"].path, folder / "student.tflite")
    chromium.open(url)
    deleted, before, after = chromium.run(
        """(async () => {
            const { ready, predict } = await import("/digit.js");
            const { getGlobalLiteRt, Tensor } = await import("@litertjs/core");
            await ready;
            const bytes = () => getGlobalLiteRt().liteRtWasm.HEAPU8.length;
            const predictions = async (count) => {
                const pixels = new Float32Array(784);
                for (let i = 0; i < count; i++) await predict(pixels);
            };
            let deleted = 0;
            const original = Tensor.prototype.delete;
            Tensor.prototype.delete = function () {
                deleted++;
                original.call(this);
            };
            await predictions(100);
            Tensor.prototype.delete = original;
            const before = bytes();
            await predictions(10000);
            return [deleted, before, bytes()];
        })()"""
    )
    # The outputs are so small that the memory alone wouldn't show them.
    assert deleted == 2 * 100
    assert after == before


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ("student.tflite", "There is no model"),
        ("node_modules/@litertjs/core/dist/index.js", "Run: npm install"),
        ("node_modules/@litertjs/core/wasm", "WebAssembly didn't start"),
    ],
)
def test_says_what_is_missing(missing, words, page, chromium, artifacts):
    folder, url = page
    shutil.copy(artifacts["float32"].path, folder / "student.tflite")
    (folder / missing).rename(folder / "elsewhere")
    try:
        chromium.open(url)
        chromium.wait_for("!document.getElementById('error').hidden")
        assert words in chromium.text("error")
    finally:
        (folder / "elsewhere").rename(folder / missing)


def test_says_what_it_cannot_do(page, chromium, artifacts):
    folder, url = page
    shutil.copy(artifacts["float32"].path, folder / "student.tflite")
    script = chromium.send(
        "Page.addScriptToEvaluateOnNewDocument",
        source="delete self.WebAssembly",
    )
    chromium.open(url)
    chromium.wait_for("!document.getElementById('error').hidden")
    assert "no WebAssembly" in chromium.text("error")
    chromium.send(
        "Page.removeScriptToEvaluateOnNewDocument",
        identifier=script["identifier"],
    )
    chromium.open((folder / "index.html").as_uri())
    chromium.wait_for("!document.getElementById('error').hidden")
    assert "needs a web server" in chromium.text("error")
    (folder / "student.tflite").write_bytes(b"nothing")
    chromium.open(url)
    chromium.wait_for("!document.getElementById('error').hidden")
    assert "Failed to load model" in chromium.text("error")


def test_the_page_keeps_to_its_own_server(example):
    for file in example.PAGE.iterdir():
        if file.suffix in {".html", ".css", ".js"}:
            assert "://" not in file.read_text().replace("from file://", "")


def test_warped_digits_keep_their_ink(example):
    images = upscaled_digits()[0][:64]
    warped = example.warp(images, np.random.default_rng(0))
    assert warped.shape == images.shape
    assert warped.dtype == np.float32
    assert 0 <= warped.min() <= warped.max() < 255.01
    assert 0.7 < warped.sum() / images.sum() < 1.3


def test_between_pixels_is_scipys(example):
    from scipy import ndimage

    random = np.random.default_rng(0)
    images = random.uniform(0, 255, (3, 28, 28)).astype("float32")
    y, x = random.uniform(-4, 32, (2, 3, 28, 28))
    for i, seen in enumerate(example.at(images, y, x)):
        expected = ndimage.map_coordinates(
            np.pad(images[i], 9), [y[i] + 9, x[i] + 9], order=1
        )
        np.testing.assert_allclose(seen, expected, atol=1e-2)
