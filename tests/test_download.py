"Bad network, wrong hash, full disk, a cache that cannot be written, two downloads at once: a clear sentence, and never half a file under its final name."
import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ldp_tut import checkpoints
from ldp_tut.bench import reevaluate
from ldp_tut.chain_planner import ChainAgent, load_pretrained
from ldp_tut.checkpoints import CheckpointError, DownloadError, cache_folder, download, file_sha256, list_pretrained, load_checkpoint, save_checkpoint

ROOT = Path(__file__).parent.parent
BODY = bytes(range(256)) * 4000  # about a megabyte
SHA = hashlib.sha256(BODY).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    "Serves one body, with the faults it is told of; remembers what it was asked."
    def __init__(self, body=BODY, ranges=True, breaks=None, status=200, busy=0):
        super().__init__(('127.0.0.1', 0), Handler)
        self.body, self.ranges, self.breaks, self.status, self.busy, self.asked = body, ranges, breaks, status, busy, []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def url(self, name='w.safetensors'): return f'http://127.0.0.1:{self.server_port}/{name}'


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        s, want = self.server, self.headers.get('Range')
        s.asked.append(want)
        if s.status != 200: return self.send_error(s.status)
        if len(s.asked) <= s.busy:
            self.send_response(503); self.send_header('Retry-After', '7'); self.send_header('Content-Length', '0'); self.end_headers()
            return
        begin = int(want[6:-1]) if want and s.ranges else 0
        if begin >= len(s.body): return self.send_error(416)
        self.send_response(206 if begin else 200)
        if begin: self.send_header('Content-Range', f'bytes {begin}-{len(s.body) - 1}/{len(s.body)}')
        self.send_header('Content-Length', str(len(s.body) - begin)); self.end_headers()
        try: self.wfile.write(s.body[begin:begin + s.breaks] if s.breaks else s.body[begin:])
        except OSError: pass  # the other side has had enough

    def log_message(self, *args): pass


@pytest.fixture
def serve():
    made = []
    def make(**faults): made.append(Server(**faults)); return made[-1]
    yield make
    for s in made: s.shutdown(); s.server_close()


def final(folder): return [p for p in Path(folder).glob('*') if p.suffix not in ('.part', '.lock')]


def test_a_file_is_fetched_once(serve, tmp_path):
    s = serve()
    path = download(s.url(), SHA, tmp_path, progress=False)
    assert path.read_bytes() == BODY and file_sha256(path) == SHA and download(s.url(), SHA.upper(), tmp_path, progress=False) == path
    assert s.asked == [None]


def test_a_damaged_copy_is_fetched_again(serve, tmp_path):
    s = serve()
    path = download(s.url(), SHA, tmp_path, progress=False)
    path.write_bytes(BODY[:-1])
    assert download(s.url(), SHA, tmp_path, progress=False).read_bytes() == BODY


def test_a_broken_download_goes_on(serve, tmp_path):
    s = serve(breaks=len(BODY) // 3 + 1)
    assert download(s.url(), SHA, tmp_path, progress=False).read_bytes() == BODY
    assert s.asked == [None, f'bytes={len(BODY) // 3 + 1}-', f'bytes={2 * (len(BODY) // 3 + 1)}-']


def test_in_a_later_session_too(serve, tmp_path):
    s = serve(breaks=len(BODY) // 5)
    with pytest.raises(DownloadError, match='broke off 2 times; call again'): download(s.url(), SHA, tmp_path, progress=False, tries=2)
    assert not final(tmp_path)
    s.breaks = None
    assert download(s.url(), SHA, tmp_path, progress=False).read_bytes() == BODY
    assert s.asked[-1] == f'bytes={2 * (len(BODY) // 5)}-'


def test_a_server_that_cannot_go_on_begins_again(serve, tmp_path):
    s = serve(ranges=False, breaks=1000)
    with pytest.raises(DownloadError): download(s.url(), SHA, tmp_path, progress=False, tries=2)
    s.breaks = None
    assert download(s.url(), SHA, tmp_path, progress=False).read_bytes() == BODY


@pytest.mark.parametrize('left', [b'something else', BODY[:-1] + b'x', BODY + b'more'])
def test_the_rest_of_another_file_does_no_harm(serve, tmp_path, left):
    s = serve()
    (tmp_path / f'w-{SHA[:8]}.safetensors.part').write_bytes(left)
    assert download(s.url(), SHA, tmp_path, progress=False).read_bytes() == BODY


def test_a_whole_part_is_not_fetched_again(serve, tmp_path):
    s = serve()
    (tmp_path / f'w-{SHA[:8]}.safetensors.part').write_bytes(BODY)
    assert download(s.url(), SHA, tmp_path, progress=False).read_bytes() == BODY and s.asked == [f'bytes={len(BODY)}-']


def test_a_wrong_file_is_not_kept(serve, tmp_path):
    s = serve(body=b'an error page of a proxy')
    with pytest.raises(DownloadError, match='not the file it should be: SHA-256 .*expected ' + SHA[:16]): download(s.url(), SHA, tmp_path, progress=False)
    assert [p.suffix for p in tmp_path.iterdir()] == ['.lock']


def test_a_busy_server_is_asked_again_when_it_says(serve, tmp_path, monkeypatch):
    waits = []
    monkeypatch.setattr('time.sleep', waits.append)
    s = serve(busy=2)
    assert download(s.url(), SHA, tmp_path, progress=False).read_bytes() == BODY and waits == [7, 7]
    with pytest.raises(DownloadError, match='answers 503'): download(serve(busy=9).url('other.bin'), SHA, tmp_path, progress=False)
    waits.clear()
    with pytest.raises(DownloadError, match='answers 404'): download(serve(status=404).url('third.bin'), SHA, tmp_path, progress=False)
    assert waits == [], 'what is not there will not be there in a moment'


def test_missing_and_offline(serve, tmp_path):
    s = serve(status=404)
    with pytest.raises(DownloadError, match=r'answers 404 .*check the address or fetch .* save it as'): download(s.url(), SHA, tmp_path, progress=False)
    url = s.url()
    s.shutdown(); s.server_close()
    with pytest.raises(DownloadError, match='are you offline'): download(url, SHA, tmp_path, progress=False)
    assert not final(tmp_path)


def test_an_unwritable_cache_says_so(serve, tmp_path, monkeypatch):
    (tmp_path / 'file').write_text('')
    monkeypatch.setenv('LDP_TUT_CACHE', str(tmp_path / 'file' / 'cache'))
    assert cache_folder() == tmp_path / 'file' / 'cache'
    with pytest.raises(DownloadError, match='cannot write to .*LDP_TUT_CACHE'): download(serve().url(), SHA, progress=False)


@pytest.mark.skipif(os.name != 'posix' or os.geteuid() == 0, reason='a read-only folder stops only people who are not root')
def test_a_read_only_cache_says_so(serve, tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(DownloadError, match='cannot write to .*LDP_TUT_CACHE'): download(serve().url(), SHA, tmp_path, progress=False)


def _child(code, *args): return subprocess.Popen([sys.executable, '-c', code, *map(str, args)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_full_disk_says_so(serve, tmp_path):
    "A limit on the size of files stands in for the disk: writing past it fails in the same way."
    child = _child(f'''
import resource, signal, sys
from ldp_tut.checkpoints import DownloadError, download
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({len(BODY) // 2}, resource.RLIM_INFINITY))
try: download(sys.argv[1], {SHA!r}, sys.argv[2], progress=False)
except DownloadError as e: print(e)''', serve().url(), tmp_path)
    out, err = child.communicate(timeout=120)
    assert 'cannot write to' in out and 'make room' in out and not final(tmp_path), out + err


def test_two_at_once_share_one_download(serve, tmp_path):
    s = serve()
    code = f'import sys; from ldp_tut.checkpoints import download; print(download(sys.argv[1], {SHA!r}, sys.argv[2], progress=False))'
    both = [_child(code, s.url(), tmp_path) for _ in range(2)]
    said = [c.communicate(timeout=120) for c in both]
    assert said[0][0] == said[1][0] and Path(said[0][0].strip()).read_bytes() == BODY, said
    assert len(s.asked) == 1


@pytest.mark.parametrize('url, sha256, words', [('ftp://x/y', SHA, 'begins with http'), ('w.safetensors', SHA, 'begins with http'), ('http://x/y', 'abc', '64 hexadecimal digits')])
def test_what_is_no_address_is_refused(url, sha256, words, tmp_path):
    with pytest.raises(ValueError, match=words): download(url, sha256, tmp_path)


def test_the_registry_is_what_is_shipped():
    run = subprocess.run([sys.executable, str(ROOT / '.ci' / 'registry.py'), '--check'], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


def test_agents_by_name_path_and_address(serve, tmp_path, monkeypatch):
    "What is not in the package comes from its address, and is the same."
    shipped, known = checkpoints.checkpoint_shelf(), list_pretrained()
    s = serve(body=(shipped / 'lavacrossing-n1.safetensors').read_bytes())
    sha256 = known['lavacrossing-n1']['sha256']
    monkeypatch.setenv('LDP_TUT_CACHE', str(tmp_path / 'cache'))
    by_address = load_pretrained(s.url('lavacrossing-n1.safetensors'), 'cpu', sha256=sha256, progress=False)
    empty = tmp_path / 'shelf'; empty.mkdir()
    (empty / 'registry.json').write_text(json.dumps({'lavacrossing-n1': dict(url=s.url('lavacrossing-n1.safetensors'), sha256=sha256)}))
    monkeypatch.setattr(checkpoints, 'checkpoint_shelf', lambda: empty)
    assert load_pretrained('lavacrossing-n1', 'cpu', progress=False).card == by_address.card and len(s.asked) == 1
    with pytest.raises(CheckpointError, match=r"choose one of \['lavacrossing-n1'\]"): load_pretrained('fourrooms')
    with pytest.raises(ValueError, match='sha256='): load_pretrained(s.url())


@pytest.mark.parametrize('change', [dict(model=None), dict(model=dict(wings=2)), dict(plan=None), dict(plan=dict(wings=2)), dict(plan=dict(votes=0))])
def test_a_newer_or_missing_configuration_is_said(tmp_path, change):
    "The file is whole, but what it says of the model or of planning this version cannot read."
    tensors, card = load_checkpoint(checkpoints.checkpoint_shelf() / 'simplecrossing-n1.safetensors')
    for part, value in change.items(): card = {n: v for n, v in card.items() if n != part} if value is None else card | {part: card[part] | value}
    path = save_checkpoint(tmp_path / 'a.safetensors', tensors, card)
    with pytest.raises(CheckpointError, match='configuration that this version of ldp_tut cannot read'): load_pretrained(str(path), 'cpu')


def test_a_card_can_be_held_to_its_word():
    agent = load_pretrained('simplecrossing-n1', 'cpu')
    again = reevaluate(agent, 4, progress=False)
    assert again['holds'] and again['same_steps'] == 4 and again['claimed'] == again['measured']
    aimless = ChainAgent(agent.planner.model, type(agent.config)(scale=0., candidates=1), agent.card)
    assert not reevaluate(aimless, 4, progress=False)['holds'], 'a planner that seeks nothing cannot be as good'
    with pytest.raises(ValueError, match='the card knows 256 rooms, got episodes=1000'): reevaluate(agent, 1000)
