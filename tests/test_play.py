# SPDX-License-Identifier: Apache-2.0
"""The page to play with, through HTTP: what it serves, and to whom."""

import base64
import hashlib
import http.client
import io
import json
import re
import signal
import sys
import threading
import time

import numpy as np
import pytest
from PIL import Image

from experiments import play, playing, sampler
from experiments.composed import Composer
from tests import toy_runs
from tests.toy_processes import finish, start

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=["digits", "gaussian"])
def server(request, tmp_path_factory):
  """The page of a finished run, at toy size."""
  run = toy_runs.finished(request.param, tmp_path_factory)[0]
  with play.Server("127.0.0.1", 0) as found:
    found.composer = Composer(sampler.load(run))
    thread = threading.Thread(target=found.serve_forever)
    thread.start()
    yield found
    found.shutdown()
    thread.join()


def ask(server, path, asked=None, **headers):
  """Code, headers and body of what the server says."""
  link = http.client.HTTPConnection(*server.server_address[:2], timeout=300)
  body = asked if asked is None or isinstance(asked, bytes) else dump(asked)
  named = {name.replace("_", "-"): value for name, value in headers.items()}
  if asked is not None:
    named = {"Content-Type": "application/json"} | named
  link.request("GET" if asked is None else "POST", path, body, named)
  reply = link.getresponse()
  return reply.status, reply.headers, reply.read()


def dump(asked) -> bytes:
  return json.dumps(asked).encode()


def a_request(server, **changes):
  """One that the page of this run could make."""
  real = not server.composer.labels
  return {"y": 0.5 if real else [0, 0.5, 0, 1], "num": 5, "seed": 1} | changes


def test_the_page_asks_nobody_else_for_anything(server):
  code, headers, body = ask(server, "/")
  page = body.decode()
  assert code == 200 and "text/html" in headers["Content-Type"]
  assert not re.search(r"https?:|//\w|@import", page)
  (script,) = re.findall(r"<script>(.*?)</script>", page, re.S)
  digest = base64.b64encode(hashlib.sha256(script.encode()).digest())
  policy = headers["Content-Security-Policy"]
  assert f"script-src 'sha256-{digest.decode()}';" in policy
  assert policy.startswith("default-src 'none'")
  # Names of a run are no markup.
  assert not re.search(r"innerHTML|outerHTML|document\.write|eval\(", script)


def test_what_may_be_asked_is_told(server):
  code, _, body = ask(server, "/run")
  told = json.loads(body)
  problem = server.composer.run.problem
  assert code == 200 and told["gap"]["mean"] > 0
  assert told["conditions"] == list(problem.pretrained.conditions)
  if server.composer.labels:
    low, *_, high = problem.edges
    first, *_, last = told["labels"]
    assert first == f"0: below {low:.4g}" and last == f"3: {high:.4g} and more"
    assert len(told["labels"]) == 4 and told["range"] is None
    assert not told["apart"]
  else:
    assert told["labels"] is None and told["apart"]
    low, high = told["range"]
    assert low < high and not told["weighs_c"]


def test_samples_their_measures_and_their_kl(server):
  asked = a_request(server)
  code, _, body = ask(server, "/samples", asked)
  told = json.loads(body)
  assert code == 200, body
  composer = server.composer
  request = playing.read(composer, asked)
  found, before = composer.draw(request), composer.before(request.c, 1)
  assert told["kl"]["mean"] == pytest.approx(found.kl.mean(), rel=1e-4)
  error = found.kl.std(ddof=1) / 5**0.5
  assert told["kl"]["stderr"] == pytest.approx(error, rel=1e-3)
  assert told["diverged"] == 0
  measure = composer.run.problem.measure
  for name, side in {"found": found, "before": before}.items():
    quantity = told["quantity"][name]
    mean = float(measure(side.x).mean())
    assert quantity["mean"] == pytest.approx(mean, abs=1e-4)
    drawn = told["drawn"][name]
    if composer.labels:
      np.testing.assert_allclose(told["seen"][name], side.seen.mean(0), 1e-4)
      file = base64.b64decode(drawn["picture"].partition(",")[2])
      sheet = np.asarray(Image.open(io.BytesIO(file)))
      assert sheet.shape == (2 * 9, 3 * 9, 3)
      last = np.clip((side.x[4] + 1) / 2, 0, 1) * 255
      np.testing.assert_allclose(sheet[9:17, 9:17, :1], last, atol=0.51)
    else:
      points = np.array(drawn.get("points") or drawn["lines"])
      np.testing.assert_allclose(points, side.x, rtol=1e-3, atol=1e-4)


def test_a_y_that_was_not_trained_is_said_to_be_none(server):
  if server.composer.labels:
    pytest.skip("labels are all trained")
  high = float(server.composer.run.problem.controls.max())
  for y, outside in ((high - 0.1, False), (high + 1, True)):
    told = json.loads(ask(server, "/samples", a_request(server, y=y))[2])
    assert told["outside"] is outside


@pytest.mark.parametrize(
  ("changes", "said"),
  [
    ({"num": 0}, "num is 0: it is a whole number from 1 to 256"),
    ({"num": 257}, "num is 257"),
    ({"num": 2.5}, "num is 2.5"),
    ({"num": True}, "num is"),
    ({"seed": -1}, "seed is -1"),
    ({"seed": 2**32}, "seed is 4294967296"),
    ({"strength": 1e9}, "strength is"),
    ({"strength": float("nan")}, "strength is"),
    ({"condition_strength": "1"}, "condition_strength is"),
    ({"c": 3}, "c is 3: it is a name"),
    ({"c": "elephant"}, "c is 'elephant'"),
    ({"y": "high"}, "y is"),
    ({"y": [1, 0]}, "y is"),
    ({"y": [0, 0, None, 1]}, "y is|a weight of y is"),
  ],
)
def test_what_is_no_request_is_told_in_a_line(server, changes, said):
  code, _, body = ask(server, "/samples", a_request(server, **changes))
  error = json.loads(body)["error"]
  assert code == 400 and re.match(said, error) and "\n" not in error


@pytest.mark.parametrize(
  ("body", "code"),
  [
    (b"", 400),
    (b"no", 400),
    (b"[]", 400),
    (b"\xff", 400),
    (b"[" * 50_000, 400),
    (b" " * 70_000, 413),
  ],
)
def test_what_is_no_json_is_refused(server, body, code):
  found, _, said = ask(server, "/samples", body)
  assert found == code and json.loads(said)["error"]


def test_what_is_no_request_does_not_wait_for_samples_of_others(server):
  with server.lock:  # as while samples are drawn
    assert ask(server, "/samples", b"no")[0] == 400


@pytest.mark.parametrize(
  "headers",
  [
    {"Host": "evil.example"},
    {"Host": "evil.example:80"},
    {"Host": "[::1"},
    {"Host": "localhost:1", "Origin": "http://evil.example"},
    {"Host": "localhost:1", "Origin": "null"},
    {"Host": "localhost:1", "Origin": "http://localhost:2"},
  ],
  ids=str,
)
def test_no_other_site_may_ask(server, headers):
  for path, asked in (("/", None), ("/run", None), ("/samples", {})):
    assert ask(server, path, asked, **headers)[0] == 403


def test_a_form_of_another_site_is_no_request(server):
  asked = a_request(server)
  kind = {"Content_Type": "text/plain"}
  assert ask(server, "/samples", asked, **kind)[0] == 404
  assert ask(server, "/nothing")[0] == 404
  own = {"Host": "localhost:1", "Origin": "http://localhost:1"}
  assert ask(server, "/samples", asked, **own)[0] == 200


def test_who_can_reach_an_address():
  assert all(play.is_local(name) for name in (*play.LOCAL, "127.1.2.3"))
  others = ("0.0.0.0", "::", "192.168.1.2", "example.org", "")
  assert not any(play.is_local(name) for name in others)


def test_a_port_that_is_taken_is_told(server):
  port = server.server_address[1]
  with pytest.raises(ValueError, match=rf"--port {port}: Address already in"):
    play.Server("127.0.0.1", port)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_the_command_serves_until_it_is_told_to_end(tmp_path_factory, signum):
  run = toy_runs.finished("gaussian", tmp_path_factory)[0]
  command = [sys.executable, "-m", "experiments.play", f"--workdir={run}"]
  process = start([*command, "--port=0"])
  line = process.stdout.readline()
  host, port = re.fullmatch(
    r"page +http://(127\.0\.0\.1):(\d+)/\n", line
  ).groups()
  link = http.client.HTTPConnection(host, int(port), timeout=60)
  link.request("GET", "/run")
  assert json.loads(link.getresponse().read())["name"] == run.name
  # Samples in hand, which are compiled for seconds.
  asked = json.dumps({"y": 0.5, "num": 5, "seed": 1})
  kind = {"Content-Type": "application/json"}
  link.request("POST", "/samples", asked, kind)
  time.sleep(1)
  process.send_signal(signum)
  assert link.getresponse().status == 200
  ((_, error, code),) = finish([process])
  assert (code, error) == (0, "")


def test_a_run_that_is_not_there_is_told(tmp_path, monkeypatch):
  monkeypatch.setattr(sys, "argv", ["play", f"--workdir={tmp_path}"])
  with pytest.raises(FileNotFoundError, match="holds no finished run"):
    play.main()
