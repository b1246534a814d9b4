"""sslam demo: a web page on this machine that listens to a clip.

Drop or record a clip: its spectrogram with the labels over time, its events with their
confidence, to be downloaded for Audacity, Raven, DESED's tools or a spreadsheet, and
the clips of FOLDER that sound most like it. A model without classes needs FOLDER.

The page is for this machine alone (127.0.0.1): nothing is sent anywhere, no file can be
read through it, and what was dropped there is deleted when the command ends (Ctrl-C).
"""

import argparse
import importlib.util
import logging
import os
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from espnet2_sslam.bin.cli import (
    model_parser,
    one_line,
    positive_seconds,
    run_main,
)

if TYPE_CHECKING:
    import numpy as np

    from espnet2_sslam.inference import SSLAM, EmbeddingIndex, Match

HOST = "127.0.0.1"
HOSTS = (HOST, "localhost")  # other names for it are a foreign page's
TOP_K = 5  # labels of the picture and of the clip
NEAREST = 10  # rows
STEP = 0.16  # seconds of a time step
FORMATS = ("csv", "tsv", "json", "audacity", "raven")  # of the events
EVENT_COLUMNS = ["onset (s)", "offset (s)", "label", "confidence"]
NEAREST_COLUMNS = ["similarity", "file", "from (s)", "to (s)"]
# Scripts and styles are in the page itself. Nothing may come from elsewhere.
POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:"


class Heard(NamedTuple):
    """A clip's scores of the time steps (T, C), and where these begin and end."""

    name: str
    scores: "np.ndarray"
    starts: "np.ndarray"
    ends: "np.ndarray"


def get_parser() -> argparse.ArgumentParser:
    """Return the command's parser."""
    example = "example: sslam demo models/esc50 field_recordings/"
    parser = model_parser("demo", __doc__ or "", example)
    text = "audio files to compare with: a folder, which is embedded first, or an "
    text += "output of sslam embed (.npz)"
    parser.add_argument("folder", metavar="FOLDER", nargs="?", help=text)
    add = parser.add_argument_group("page").add_argument
    add("--device", help="cpu, cuda, cuda:1, mps (default: the best one there is)")
    add("--port", type=int, help="port of the page (default: a free one from 7860 on)")
    length = {"type": positive_seconds, "metavar": "S"}
    text = "longest clip in seconds (default: 600)"
    add("--max_seconds", **length, default=600.0, help=text)
    text = "largest file in megabytes (default: 100)"
    add("--max_mb", type=int, default=100, metavar="N", help=text)
    text = "compare with windows of S seconds of the files of FOLDER (default: 10)"
    add("--chunk", **length, default=10.0, help=text)
    return parser


def check_port(port: int | None) -> None:
    """Refuse a port that is in use, before the folder is embedded."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port or 0))
        except (OSError, OverflowError) as error:
            raise ValueError(
                f"--port {port} cannot be taken ({error}): give another one, or leave "
                "--port out"
            ) from None


def main(cmd: Sequence[str] | None = None) -> None:
    """Load, embed the folder, and serve until Ctrl-C."""
    args = get_parser().parse_args(cmd)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    for name in ("gradio", "matplotlib"):
        if importlib.util.find_spec(name) is None:
            raise ValueError(f"the page needs {name}: pip install gradio matplotlib")
    from espnet2_sslam.inference import SSLAM

    options = {"revision": args.revision, "weights": args.weights}
    model = SSLAM.from_pretrained(args.model, device=args.device, **options)
    if not model.classes and args.folder is None:
        raise ValueError(
            f"{args.model} has no classes: name a FOLDER of clips to compare with"
        )
    check_port(args.port)
    index = None if args.folder is None else load_index(model, args.folder, args.chunk)
    name = Path(args.model).name
    with private_gradio() as gradio:
        from starlette.middleware import Middleware
        from starlette.middleware.trustedhost import TrustedHostMiddleware

        listener = Listener(model, index, args.max_seconds, gradio.Error)
        limits = f"Drop an audio file or record one: at most {args.max_seconds:g} s "
        limits += f"and {args.max_mb} MB."
        page = build_page(gradio, listener, name, limits)
        _, url, _ = page.queue(max_size=16).launch(
            server_name=HOST,
            server_port=args.port,
            max_file_size=f"{args.max_mb}mb",
            prevent_thread_lock=True,
            quiet=True,
            share=False,
            ssr_mode=False,
            enable_monitoring=False,
            run_history=False,
            footer_links=[],
            theme=gradio.themes.Default(font=["system-ui", "sans-serif"]),
            app_kwargs={
                "middleware": [
                    Middleware(TrustedHostMiddleware, HOSTS),
                    Middleware(guard),
                ]
            },
        )
        print(f"the page is at {url} (this machine only); Ctrl-C ends it", flush=True)
        try:
            while True:  # a signal that another thread takes would not end one wait
                time.sleep(1)
        except KeyboardInterrupt as interrupt:
            if getattr(interrupt, "number", signal.SIGINT) != signal.SIGINT:
                raise
        finally:
            page.close(verbose=False)


def load_index(model: "SSLAM", folder: str, chunk: float) -> "EmbeddingIndex":
    """Embed the files of a folder in windows, or read an output of `sslam embed`.

    Raises:
        ValueError: Nothing to be used there, or another model's output.
    """
    import numpy as np

    from espnet2_sslam.inference import EmbeddingIndex, collect_files
    from espnet2_sslam.progress import Progress, say

    if folder.endswith(".npz"):
        index = EmbeddingIndex.read(folder)
        index.check(model)
        return index
    files, rows = collect_files([folder]), []
    with Progress("embed", len(files)) as progress:
        results = model.embed_files([file.path for file in files], chunk=chunk)
        for file, result in zip(files, results, strict=True):
            if result.problem is None:
                rows += [
                    (file.path, *row)
                    for row in zip(
                        result.starts, result.ends, result.values, strict=True
                    )
                ]
            else:
                say(f"left out: {file.path}: {result.problem}")
            progress.update(1, result.duration or 0)
    if not rows:
        raise ValueError(f"{folder}: none of {len(files)} files could be used")
    names, starts, ends, values = zip(*rows, strict=True)
    return EmbeddingIndex(names, starts, ends, np.stack(values))


@contextmanager
def private_gradio() -> Iterator[Any]:
    """The package, imported with no setting from outside and a cache of its own."""
    for name in list(os.environ):
        if name.startswith("GRADIO_"):  # they could allow paths, or share
            del os.environ[name]
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    for name in ("no_proxy", "NO_PROXY"):  # it asks the page whether it is there
        os.environ[name] = ",".join(filter(None, [os.environ.get(name), HOST]))
    with tempfile.TemporaryDirectory(prefix="sslam_demo_") as cache:
        os.environ["GRADIO_TEMP_DIR"] = cache
        import gradio

        yield gradio


def guard(app: Any) -> Any:
    """The page's server, which asks no other host, nor lets the browser ask one."""
    from starlette.responses import Response

    async def guarded(scope: Any, receive: Any, send: Any) -> None:
        async def with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                header = (b"content-security-policy", POLICY.encode())
                message["headers"] = [*message.get("headers", ()), header]
            await send(message)

        path = scope.get("path", "").lower()
        fetches = "proxy=" in path or "file=http" in path
        answer = Response(status_code=404) if fetches else app
        await answer(scope, receive, with_policy)

    return guarded


class Listener:
    """What the page asks of the model.

    Args:
        model: Any.
        index: Of the clips to compare with.
        max_seconds: Of a clip.
        error: What the page shows as a message.
    """

    def __init__(
        self,
        model: "SSLAM",
        index: "EmbeddingIndex | None",
        max_seconds: float,
        error: Callable[..., Exception],
    ):
        self.model, self.index = model, index
        self.max_seconds, self.error = max_seconds, error

    @contextmanager
    def _said(self, path: str) -> Iterator[None]:
        """Errors of a clip in one line, which names the file and not its folder."""
        try:
            yield
        except (ValueError, OSError) as error:
            line = one_line(error).replace(path, os.path.basename(path))
            raise self.error(line, print_exception=False) from error

    def hear(self, path: str | None) -> tuple[Heard | None, Any, Any]:
        """Scores of the time steps, the picture, and the labels of the whole clip."""
        from espnet2_sslam.audio import duration
        from espnet2_sslam.inference import plot

        if path is None:
            return None, None, None
        with self._said(path):
            if (seconds := duration(path)) > self.max_seconds:
                raise ValueError(
                    f"the clip has {seconds:.1f} s, the page takes "
                    f"{self.max_seconds:g} s: cut it, or start the page with a larger "
                    "--max_seconds"
                )
            if not self.model.classes:
                return None, None, None
            spectrogram = plot.read_spectrogram(path)
            [result] = self.model.tag_frames([path], resolution=STEP)
            if result.error is not None:
                raise ValueError(result.error)
            labels: Any = self.model.tag(path, top_k=TOP_K)
        name = os.path.basename(path)
        heard = Heard(name, result.values, result.starts, result.ends)
        end = float(spectrogram.edges[-1])
        timeline = plot.make_timeline(*heard[1:], self.model.classes, TOP_K, end)
        note = f"every {STEP:g} s"
        return (
            heard,
            plot.draw_timeline(spectrogram, timeline, name, note),
            dict(labels),
        )

    def find(
        self, heard: Heard | None, threshold: float, median: float
    ) -> tuple[list[list[Any]], list[str]]:
        """Events as rows of a table, and as files to download."""
        from espnet2_sslam.inference import (
            find_events,
            recording_path,
            write_events,
        )

        if heard is None:
            return [], []
        options = {"threshold": threshold, "median": median}
        events = find_events(*heard[1:], self.model.classes or [], **options)
        folder = Path(tempfile.mkdtemp(dir=os.environ["GRADIO_TEMP_DIR"]))
        paths = []
        for format in FORMATS:
            if format in ("audacity", "raven"):
                path = recording_path(folder, heard.name, format)
            else:
                path = folder / f"{Path(heard.name).stem}.{format}"
            # the page shows the beginning of a long name
            path = path.with_name(f"{format} {path.name}")
            write_events(path, format, [(heard.name, events)])
            paths.append(str(path))
        rows = [[round(e[0], 2), round(e[1], 2), e[2], round(e[3], 3)] for e in events]
        return rows, paths

    def compare(self, path: str | None) -> tuple[list["Match"], list[list[Any]]]:
        """The nearest rows of the index, and as rows of a table."""
        if path is None or self.index is None:
            return [], []
        with self._said(path):
            matches = self.index.search(self.index.embed(self.model, path), NEAREST)
        return matches, [
            [round(score, 3), file, round(start, 2), round(end, 2)]
            for file, start, end, score in matches
        ]

    def play(self, match: "Match") -> tuple[int, "np.ndarray"]:
        """Samples of a row of the index, read here: the page may read no file."""
        from espnet2_sslam.audio import cut_name, read_audio, split_cut
        from espnet2_sslam.units import SAMPLE_RATE

        path, begin, _ = split_cut(match.file)
        times = [(begin or 0) + time for time in (match.start, match.end)]
        with self._said(path):
            samples = read_audio(cut_name(path, *times))
        return SAMPLE_RATE, (samples.clip(-1, 1) * 32_767).astype("int16")


def build_page(gradio: Any, listener: Listener, name: str, limits: str) -> Any:
    """The page: a clip on the left, what is heard in it on the right and below."""
    has_classes, has_index = bool(listener.model.classes), listener.index is not None
    shown = {"interactive": False, "buttons": ["copy"]}
    with gradio.Blocks(
        title=f"SSLAM: {name}", analytics_enabled=False, delete_cache=(600, 3600)
    ) as page:
        gradio.Markdown(f"# {name}\n{limits} It stays on this machine.")
        with gradio.Row():
            with gradio.Column(scale=1):
                clip = gradio.Audio(type="filepath", label="Clip", buttons=[])
                labels = gradio.Label(label="Labels of the clip", visible=has_classes)
            with gradio.Column(scale=2, visible=has_classes):
                picture = gradio.Plot(show_label=False, format="png")
        heard, matches = gradio.State(), gradio.State([])
        with gradio.Column(visible=has_classes):
            gradio.Markdown("## Events")
            with gradio.Row():
                threshold = gradio.Slider(
                    0.05, 0.95, 0.5, step=0.05, label="Least score of an event"
                )
                median = gradio.Slider(
                    0, 12 * STEP, 0, step=STEP, label="Median filter (s)"
                )
            with gradio.Row():
                with gradio.Column(scale=3):
                    events = gradio.Dataframe(headers=EVENT_COLUMNS, **shown)
                files = gradio.File(
                    label="Downloads (.txt: Audacity, Raven; .tsv: DESED)",
                    file_count="multiple",
                    interactive=False,
                )
        with gradio.Column(visible=has_index):
            gradio.Markdown("## Nearest clips")
            with gradio.Row():
                with gradio.Column(scale=3):
                    nearest = gradio.Dataframe(headers=NEAREST_COLUMNS, **shown)
                player = gradio.Audio(
                    label="Choose a row to hear it", interactive=False, buttons=[]
                )

        def play(rows: list["Match"], row: Any) -> Any:
            return listener.play(rows[row.index[0]])

        # by which it passes the row that was chosen
        play.__annotations__ = {"row": gradio.SelectData}
        found = {"inputs": [heard, threshold, median], "outputs": [events, files]}
        hidden = {"api_visibility": "private"}
        heard_now = clip.change(listener.hear, clip, [heard, picture, labels], **hidden)
        heard_now.success(listener.find, **found, **hidden)
        heard_now.success(listener.compare, clip, [matches, nearest], **hidden)
        heard_now.failure(  # nothing of the clip before
            lambda: [None] * 7,
            None,
            [heard, picture, labels, events, files, matches, nearest],
            **hidden,
        )
        for slider in (threshold, median):
            slider.change(listener.find, **found, **hidden, trigger_mode="always_last")
        nearest.select(play, matches, player, **hidden)
    return page


if __name__ == "__main__":
    run_main(main)
