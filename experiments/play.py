# SPDX-License-Identifier: Apache-2.0
"""A page to play with a finished run: what is asked for, and what it costs.

  python -m experiments.play --workdir=RUN [--port 7860] [--host 127.0.0.1]

The page has the c and y of any finished run, somebody's own data included, with
their strengths, mixtures of labels, a seed and a number of samples. It shows
the samples beside what the pre-trained model made of the same noise, what they
measure, and the KL divergence in nats that they cost (docs/play.md).

It is one file that asks nobody else for anything, and needs no network. Only
this machine can reach it unless --host says otherwise; there is no password.
Ctrl-C ends it, and so does SIGTERM, once the samples in hand are made; a second
one, at once.

Exit code: 0 done; 2 a mistake in the command or a file, told in one line.
"""

import base64
import hashlib
import http.server
import ipaddress
import json
import pathlib
import re
import signal
import sys
import threading
from types import FrameType
from typing import Any
from urllib.parse import urlsplit

from experiments import playing, sampler
from experiments.composed import Composer
from experiments.configs import rules
from experiments.runtime import arguments, devices, finished_run, outcome

PAGE = pathlib.Path(__file__).with_name("play.html")
LARGEST = 2**16  # bytes of a request
LOCAL = ("localhost", "127.0.0.1", "::1")


class Server(http.server.ThreadingHTTPServer):
  """Serves the page of one run, and one request for samples at a time."""

  daemon_threads = True
  composer: Composer  # to be set before it serves

  def __init__(self, host: str, port: int) -> None:
    """Takes the address; port 0 is any that is free.

    Raises:
      ValueError: it cannot be had.
    """
    self.local, self.lock = is_local(host), threading.Lock()
    self.page = PAGE.read_bytes()
    self.policy = policy_of(self.page.decode())
    try:
      super().__init__((host, port), Handler)
    except OSError as error:
      raise ValueError(
        f"--host {host} --port {port}: {error.strerror}; use another, or "
        "--port 0 for any that is free"
      ) from None

  def end(self, signum: int, _: FrameType | None) -> None:
    """A signal's handler: serves no more; a second signal ends all at once.

    It raises nothing, for Python may call it in a callback, where an exception
    is lost.
    """
    signal.signal(signum, signal.SIG_DFL)
    threading.Thread(target=self.shutdown).start()


class Handler(http.server.BaseHTTPRequestHandler):
  """The page at /, what its run is at /run, samples of a request at /samples.

  No other site may ask: browsers say whose page they come from (Origin), and by
  which name they found this one (Host), which somebody else's name may be made
  to lead to.
  """

  server: Server
  timeout = 60  # seconds for the other side to say something

  def do_GET(self) -> None:  # noqa: N802, by which the library finds it
    """The page, or what may be asked of the run."""
    if self._refused():
      return
    if self.path == "/":
      self._send(200, self.server.page, "text/html; charset=utf-8")
    elif self.path == "/run":
      self._tell(200, playing.about(self.server.composer))
    else:
      self._tell(404, {"error": "there is nothing here"})

  def do_POST(self) -> None:  # noqa: N802
    """Samples of a request."""
    if self._refused():
      return
    length = self.headers.get("Content-Length", "")
    kind = self.headers.get_content_type()
    if self.path != "/samples" or kind != "application/json":
      self._tell(404, {"error": "post JSON to /samples"})
    elif not length.isdecimal() or int(length) > LARGEST:
      self._tell(413, {"error": f"a request has at most {LARGEST} bytes"})
    else:
      self._answer(self.rfile.read(int(length)))

  def _answer(self, body: bytes) -> None:
    composer = self.server.composer
    try:
      request = playing.read(composer, json.loads(body))
    except (ValueError, RecursionError) as error:
      said = " ".join(str(error).split())
      self._tell(400, {"error": said})
      return
    with self.server.lock:  # until it is told: a page that ends waits for it
      self._tell(200, playing.answer(composer, request))

  def _refused(self) -> bool:
    """Whether somebody else's page asks, which is told."""
    host = self.headers.get("Host", "")
    origin = self.headers.get("Origin")
    strange = self.server.local and name_of(host) not in LOCAL
    if not strange and origin in (None, f"http://{host}"):
      return False
    self._tell(403, {"error": "this page answers to no other site"})
    return True

  def _tell(self, code: int, content: Any) -> None:
    text = json.dumps(content, allow_nan=False)
    self._send(code, text.encode(), "application/json")

  def _send(self, code: int, body: bytes, kind: str) -> None:
    self.send_response(code)
    self.send_header("Content-Type", kind)
    self.send_header("Content-Length", str(len(body)))
    self.send_header("Content-Security-Policy", self.server.policy)
    self.send_header("X-Content-Type-Options", "nosniff")
    self.send_header("Cache-Control", "no-store")
    self.end_headers()
    self.wfile.write(body)

  def log_message(self, *_: Any) -> None:
    """Says nothing of every request."""


def policy_of(page: str) -> str:
  """What a browser may do for a page: its own script, style and addresses."""
  (script,) = re.findall(r"<script>(.*?)</script>", page, re.S)
  digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
  return (
    f"default-src 'none'; script-src 'sha256-{digest}'; connect-src 'self'; "
    "style-src 'unsafe-inline'; img-src data:; form-action 'none'; "
    "base-uri 'none'; frame-ancestors 'none'"
  )


def name_of(host: str) -> str:
  """The name in a header, without a port; "" where it is none."""
  try:
    return urlsplit(f"//{host}").hostname or ""
  except ValueError:
    return ""


def is_local(host: str) -> bool:
  """Whether an address is one that this machine alone can reach."""
  try:
    return ipaddress.ip_address(host).is_loopback
  except ValueError:
    return host == "localhost"


def main() -> None:
  """Does what the command line says."""
  parser = arguments.Parser(__doc__)
  parser.add_argument("--workdir", required=True, help="folder of the run")
  parser.add_argument("--host", default="127.0.0.1", help="address to bind to")
  parser.add_argument("--port", type=arguments.at_least(0), default=7860)
  given = parser.parse_args()
  rules.check_local("--workdir", given.workdir)
  run = pathlib.Path(given.workdir)
  finished_run.family(run, needed=(finished_run.LEARNED,))
  with Server(given.host, given.port) as server:
    if not server.local:
      print(
        f"warning: whoever reaches {given.host} can use this page",
        file=sys.stderr,
      )
    devices.start(finished_run.config_of(run))
    server.composer = Composer(sampler.load(run))
    host, port = server.server_address[:2]
    # Before the address is told: whoever reads it may end the page at once.
    for signum in (signal.SIGINT, signal.SIGTERM):
      signal.signal(signum, server.end)
    print(f"page        http://{host!s}:{port}/", flush=True)
    server.serve_forever()
    print()
    with server.lock:  # Python must not end while a thread is in XLA
      pass


if __name__ == "__main__":
  sys.exit(outcome.exit_code(main))
