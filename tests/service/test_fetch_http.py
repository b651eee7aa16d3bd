"""The fetcher against an HTTP server that misbehaves: one case a fault, and the bytes that went over the wire counted."""

import asyncio
import hashlib
import os
import ssl
import subprocess

import msgspec
import pytest
from testkit import faulty_http as faulty
from torchmodel_runtime import config as contract
from torchmodel_runtime.config import FetchConfig, Receipt
from torchmodel_runtime.fetch import FetchError, FetchSettings, RetryPolicy, Timeouts, fetch

CONTENT = os.urandom(3_000_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
OTHER = os.urandom(3_000_000)
OTHER_SHA256 = hashlib.sha256(OTHER).hexdigest()
LOST_WITH_A_CUT = 1_000_000
"""aiohttp drops what it has read and not handed over when the connection ends: some buffers' worth."""
QUICK = FetchSettings(
    timeouts=Timeouts(connect_s=2, stall_s=0.3),
    retry=RetryPolicy(first_delay_s=0.01, max_delay_s=0.02),
    progress_interval_s=0,
)


@pytest.fixture
async def server():
    async with faulty.FaultyServer() as server:
        yield server


@pytest.fixture
def fetch_it(server, tmp_path):
    """Fetch /model.pth of the server into tmp_path/out."""

    async def run(uri=None, **changes):
        fields = {
            "uri": uri or server.url("/model.pth"),
            "sha256": SHA256,
            "destination": str(tmp_path / "out"),
            **changes,
        }
        return await fetch(FetchConfig(**fields), settings=QUICK)

    return run


@pytest.fixture
def kept(tmp_path):
    """The files in the destination, without workspaces."""
    return lambda: sorted(path.name for path in (tmp_path / "out").iterdir() if path.name != ".incoming")


async def refused(operation):
    with pytest.raises(FetchError) as caught:
        await operation
    return caught.value


async def test_a_file_arrives_with_its_receipt(server, fetch_it, tmp_path, kept):
    server.serve("/model.pth", CONTENT)
    receipt = await fetch_it()
    assert (tmp_path / "out" / receipt.path).read_bytes() == CONTENT
    assert kept() == ["model.pth", "receipt.json"]
    assert list((tmp_path / "out" / ".incoming").iterdir()) == []
    assert msgspec.json.decode((tmp_path / "out" / "receipt.json").read_bytes(), type=Receipt) == receipt
    assert (receipt.sha256, receipt.size_bytes, receipt.files, receipt.cached) == (SHA256, len(CONTENT), 1, False)
    assert server.requests[0].headers["accept-encoding"] == "identity"


async def test_without_an_expected_digest_the_found_one_is_reported(server, fetch_it):
    server.serve("/model.pth", CONTENT)
    assert (await fetch_it(sha256=None)).sha256 == SHA256


async def test_progress_is_reported(server, tmp_path):
    server.serve("/model.pth", CONTENT)
    reports = []
    config = FetchConfig(uri=server.url("/model.pth"), destination=str(tmp_path))
    await fetch(config, reports.append, settings=QUICK)
    done = [report.bytes_done for report in reports]
    assert done == sorted(done)
    assert (done[-1], reports[-1].bytes_total) == (len(CONTENT), len(CONTENT))


@pytest.mark.parametrize("size", [0, 1, 1 << 20, (1 << 20) + 1])
async def test_files_of_unusual_size(server, fetch_it, tmp_path, size):
    server.serve("/model.pth", CONTENT[:size])
    receipt = await fetch_it(sha256=hashlib.sha256(CONTENT[:size]).hexdigest())
    assert receipt.size_bytes == size
    assert (tmp_path / "out" / "model.pth").read_bytes() == CONTENT[:size]


@pytest.mark.parametrize(
    "faults",
    [
        pytest.param([faulty.Cut(0)], id="cut before the first byte"),
        pytest.param([faulty.Cut(1_000_000)], id="cut in the middle"),
        pytest.param([faulty.Cut(450_000)] * 6, id="cut more often than the tries without progress"),
        pytest.param([faulty.Stall(1_000_000)], id="stall"),
        pytest.param([faulty.LieAboutLength(+5000)], id="announces more than it sends"),
        pytest.param([faulty.Answer(503, {"Retry-After": "0"})] * 4, id="503 with Retry-After, then fine"),
        pytest.param([faulty.Answer(500), faulty.Answer(429), faulty.Answer(408)], id="500, 429, 408, then fine"),
        pytest.param([faulty.Cut(900_000), faulty.Answer(502), faulty.Cut(900_000)], id="cut, 502, cut"),
        pytest.param([faulty.Cut(1_000_000), faulty.IgnoreRange()], id="cut, then Range ignored"),
        pytest.param([faulty.Cut(1_000_000), faulty.WrongRange(-7)], id="cut, then another range"),
        pytest.param([faulty.WeakETag(1_000_000)], id="cut with a weak ETag"),
        pytest.param([faulty.Chunked()], id="chunked, without a length"),
        pytest.param([faulty.Chunked(1_000_000)], id="chunked and cut"),
        pytest.param([faulty.Chunked(len(CONTENT))], id="chunked and cut before the last chunk's mark"),
    ],
)
async def test_faults_that_are_overcome(server, fetch_it, tmp_path, faults):
    server.serve("/model.pth", CONTENT, *faults)
    receipt = await fetch_it()
    assert (receipt.sha256, receipt.size_bytes) == (SHA256, len(CONTENT))
    assert (tmp_path / "out" / "model.pth").read_bytes() == CONTENT


async def test_after_a_cut_only_the_rest_is_sent(server, fetch_it):
    server.serve("/model.pth", CONTENT, faulty.Cut(2_000_000))
    await fetch_it()
    assert len(CONTENT) <= server.bytes_sent <= len(CONTENT) + LOST_WITH_A_CUT
    assert 0 < int(server.requests[1].headers["range"][len("bytes=") : -1]) <= 2_000_000
    assert server.requests[1].headers["if-range"] == '"one"'


async def test_a_file_that_changes_midway_is_fetched_anew(server, fetch_it, tmp_path):
    server.serve("/model.pth", CONTENT, faulty.Cut(1_000_000), faulty.NewContent(OTHER))
    receipt = await fetch_it(sha256=None)
    assert receipt.sha256 == OTHER_SHA256
    assert (tmp_path / "out" / "model.pth").read_bytes() == OTHER


async def test_a_file_that_shrinks_below_what_was_received_is_fetched_anew(server, fetch_it):
    server.serve("/model.pth", CONTENT, faulty.Cut(1_000_000), faulty.NewContent(OTHER[:1000], keeps_etag=True))
    assert (await fetch_it(sha256=None)).size_bytes == 1000


async def test_joined_bytes_without_the_digest_are_fetched_anew_once(server, fetch_it, tmp_path):
    server.serve("/model.pth", OTHER, faulty.Cut(1_000_000), faulty.NewContent(CONTENT, keeps_etag=True))
    await fetch_it()
    assert (tmp_path / "out" / "model.pth").read_bytes() == CONTENT
    assert len(server.requests) == 3


async def test_a_mismatch_names_both_digests_and_leaves_nothing(server, fetch_it, kept, tmp_path):
    server.serve("/model.pth", OTHER)
    error = await refused(fetch_it())
    assert (error.reason, error.retryable) == (contract.CHECKSUM_MISMATCH, False)
    assert all(text in error.message for text in (SHA256, OTHER_SHA256, "3000000 bytes"))
    assert f"spec.checkpoint.sha256: {OTHER_SHA256}" in error.next_step
    assert kept() == []
    assert list((tmp_path / "out" / ".incoming").iterdir()) == []
    assert len(server.requests) == 1


async def test_announcing_less_than_there_is_ends_as_a_mismatch(server, fetch_it):
    server.serve("/model.pth", CONTENT, always=faulty.LieAboutLength(-5000))
    assert (await refused(fetch_it())).reason == contract.CHECKSUM_MISMATCH


@pytest.mark.parametrize(
    ("always", "reason", "retryable", "requests"),
    [
        pytest.param(faulty.Answer(401), contract.ACCESS_DENIED, False, 1, id="401"),
        pytest.param(faulty.Answer(403), contract.ACCESS_DENIED, False, 1, id="403"),
        pytest.param(faulty.Answer(404), contract.CHECKPOINT_NOT_FOUND, False, 1, id="404"),
        pytest.param(faulty.Answer(410), contract.CHECKPOINT_NOT_FOUND, False, 1, id="410"),
        pytest.param(faulty.Answer(400), contract.FETCH_FAILED, False, 1, id="400"),
        pytest.param(faulty.Answer(204), contract.FETCH_FAILED, False, 1, id="204"),
        pytest.param(faulty.Answer(206), contract.FETCH_FAILED, False, 1, id="206 that nobody asked for"),
        pytest.param(faulty.Encoded(), contract.FETCH_FAILED, False, 1, id="Content-Encoding"),
        pytest.param(faulty.Answer(503), contract.FETCH_FAILED, True, 5, id="503 for ever"),
        pytest.param(faulty.Cut(0), contract.FETCH_FAILED, True, 5, id="cut for ever"),
        pytest.param(faulty.Stall(0), contract.FETCH_FAILED, True, 5, id="stall for ever"),
    ],
)
async def test_faults_that_end_the_fetch(server, fetch_it, kept, always, reason, retryable, requests):
    server.serve("/model.pth", CONTENT, always=always)
    error = await refused(fetch_it())
    assert (error.reason, error.retryable) == (reason, retryable)
    assert server.url("/model.pth") in error.message
    assert error.next_step
    assert len(server.requests) == requests
    assert kept() == []


async def test_starting_over_and_over_is_no_progress(server, fetch_it):
    server.serve("/model.pth", CONTENT, always=faulty.WeakETag(1_000_000))
    error = await refused(fetch_it())
    assert (error.reason, error.retryable) == (contract.FETCH_FAILED, True)
    assert 5 <= len(server.requests) <= 20


async def test_a_server_that_is_not_there(fetch_it):
    error = await refused(fetch_it("http://127.0.0.1:9/model.pth"))
    assert (error.reason, error.retryable) == (contract.FETCH_FAILED, True)
    assert "refused" in error.message


async def test_a_length_beyond_the_disk_is_refused_before_any_byte(server, fetch_it, tmp_path):
    server.serve("/model.pth", CONTENT, always=faulty.LieAboutLength(1 << 60))
    error = await refused(fetch_it())
    assert (error.reason, error.retryable) == (contract.STORAGE_FULL, True)
    assert str((1 << 60) + len(CONTENT)) in error.message
    assert all(path.stat().st_size == 0 for path in tmp_path.rglob("model.pth"))


class TestRedirects:
    """Followed here, not by aiohttp."""

    @pytest.fixture
    def secret(self, tmp_path):
        (tmp_path / "secret").mkdir()
        (tmp_path / "secret" / "authorization").write_text("Bearer HUSH")
        return str(tmp_path / "secret")

    async def test_are_followed_and_authorization_stays_on_its_origin(self, server, fetch_it, secret):
        server.serve("/model.pth", b"", faulty.Answer(302, {"Location": "/two"}))
        server.serve("/two", b"", faulty.Answer(307, {"Location": server.url("/three?sig=a%2Fb", "localhost")}))
        server.serve("/three", CONTENT)
        await fetch_it(credentials=secret)
        assert [request.headers.get("authorization") for request in server.requests] == [
            "Bearer HUSH",
            "Bearer HUSH",
            None,
        ]
        assert server.requests[2].path == "/three?sig=a%2Fb"

    async def test_end_after_five(self, server, fetch_it):
        server.serve("/model.pth", b"", always=faulty.Answer(301, {"Location": "/model.pth"}))
        error = await refused(fetch_it())
        assert (error.reason, len(server.requests)) == (contract.FETCH_FAILED, 6)

    @pytest.mark.parametrize("target", ["", "ftp://x/y", "file:///etc/passwd", "http://u:p@127.0.0.1/x", "http://[/"])
    async def test_to_something_else_are_refused(self, server, fetch_it, target):
        server.serve("/model.pth", b"", always=faulty.Answer(302, {"Location": target}))
        error = await refused(fetch_it())
        assert (error.reason, error.retryable) == (contract.FETCH_FAILED, False)

    async def test_a_resume_goes_through_the_redirect_again(self, server, fetch_it):
        server.serve("/model.pth", b"", always=faulty.Answer(302, {"Location": "/two"}))
        server.serve("/two", CONTENT, faulty.Cut(2_000_000))
        await fetch_it()
        assert server.bytes_sent <= len(CONTENT) + LOST_WITH_A_CUT


async def test_user_and_query_of_the_uri_are_sent_and_never_shown(server, fetch_it, tmp_path, caplog):
    server.serve("/model.pth", CONTENT, faulty.Cut(100))
    caplog.set_level("DEBUG", logger="torchmodel_runtime")
    url = server.url("/model.pth").replace("http://", "http://user:HUSH@")
    receipt = await fetch_it(url + "?X-Signature=HUSH")
    assert server.requests[0].headers["authorization"] == "Basic dXNlcjpIVVNI"
    assert server.requests[0].path == "/model.pth?X-Signature=HUSH"
    assert "HUSH" not in (tmp_path / "out" / "receipt.json").read_text() + receipt.uri
    assert caplog.records
    assert all("HUSH" not in str(record.__dict__) for record in caplog.records)
    server.serve("/model.pth", CONTENT, always=faulty.Answer(403))
    error = await refused(fetch_it(url + "?X-Signature=HUSH", destination=str(tmp_path / "else")))
    assert "HUSH" not in error.message + error.next_step


def make_certificate(folder):
    command = "openssl req -x509 -newkey rsa:2048 -nodes -keyout key -out crt -days 2 -subj /CN=localhost"
    command += " -addext subjectAltName=DNS:localhost"
    subprocess.run(command.split(), cwd=folder, check=True, capture_output=True)


async def test_https_with_an_authority_of_ones_own(tmp_path):
    make_certificate(tmp_path)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(tmp_path / "crt", tmp_path / "key")
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "ca.crt").write_bytes((tmp_path / "crt").read_bytes())
    async with faulty.FaultyServer(tls=tls) as server:
        server.serve("/model.pth", CONTENT)
        url, out = server.url("/model.pth", "localhost"), str(tmp_path / "out")
        error = await refused(fetch(FetchConfig(uri=url, destination=out), settings=QUICK))
        assert (error.reason, error.retryable) == (contract.FETCH_FAILED, False)
        assert "ca.crt" in error.next_step
        config = FetchConfig(uri=url, destination=out, credentials=str(tmp_path / "secret"))
        assert (await fetch(config, settings=QUICK)).sha256 == SHA256
        server.serve("/model.pth", b"", always=faulty.Answer(302, {"Location": url.replace("https", "http")}))
        error = await refused(fetch(config, settings=QUICK))
        assert "from https to http" in error.message


class TestSecondRun:
    """What is here already is hashed and not fetched."""

    async def test_a_pinned_file_with_its_receipt_is_kept(self, server, fetch_it):
        server.serve("/model.pth", CONTENT)
        await fetch_it()
        receipt = await fetch_it()
        assert receipt.cached
        assert len(server.requests) == 1

    async def test_a_kept_file_with_a_flipped_bit_is_fetched_anew(self, server, fetch_it, tmp_path):
        server.serve("/model.pth", CONTENT)
        await fetch_it()
        with (tmp_path / "out" / "model.pth").open("r+b") as file:
            file.seek(1_000_000)
            file.write(bytes([CONTENT[1_000_000] ^ 1]))
        assert not (await fetch_it()).cached
        assert (tmp_path / "out" / "model.pth").read_bytes() == CONTENT

    async def test_without_a_digest_the_file_may_be_old_and_is_fetched_anew(self, server, fetch_it):
        server.serve("/model.pth", CONTENT)
        await fetch_it(sha256=None)
        server.serve("/model.pth", OTHER)
        assert (await fetch_it(sha256=None)).sha256 == OTHER_SHA256

    async def test_a_failed_fetch_leaves_no_receipt_of_the_one_before(self, server, fetch_it, kept):
        server.serve("/model.pth", CONTENT)
        await fetch_it()
        server.serve("/model.pth", OTHER)
        await refused(fetch_it(sha256="0" * 64))
        assert "receipt.json" not in kept()

    async def test_a_cached_digest_is_not_asked_for_whatever_the_uri(self, server, fetch_it, tmp_path):
        server.serve("/model.pth", CONTENT)
        cache = str(tmp_path / "cache")
        first = await fetch_it(cache=cache)
        second = await fetch_it("http://127.0.0.1:9/other.pth", cache=cache, destination=str(tmp_path / "two"))
        assert (first.cached, second.cached, second.path) == (False, True, first.path)
        assert first.path == f"{cache}/sha256/{SHA256}/model.pth"
        assert len(server.requests) == 1
        assert [path.name for path in (tmp_path / "two").iterdir()] == ["receipt.json"]

    async def test_a_rotten_cache_entry_is_replaced(self, server, fetch_it, tmp_path):
        server.serve("/model.pth", CONTENT)
        cache = tmp_path / "cache"
        (cache / "sha256" / SHA256).mkdir(parents=True)
        (cache / "sha256" / SHA256 / "model.pth").write_bytes(OTHER)
        receipt = await fetch_it(cache=str(cache))
        assert not receipt.cached
        assert (cache / "sha256" / SHA256 / "model.pth").read_bytes() == CONTENT
        assert list((cache / "incoming").iterdir()) == []

    async def test_fetchers_of_one_digest_at_once_fetch_it_once(self, server, fetch_it, tmp_path):
        server.serve("/model.pth", CONTENT, faulty.Slow(6_000_000))
        runs = (fetch_it(cache=str(tmp_path / "cache"), destination=str(tmp_path / str(n))) for n in range(5))
        receipts = await asyncio.gather(*runs)
        assert sorted(receipt.cached for receipt in receipts) == [False, True, True, True, True]
        assert server.bytes_sent == len(CONTENT)

    async def test_fetchers_without_a_digest_do_not_wait_for_each_other(self, server, fetch_it, tmp_path):
        server.serve("/model.pth", CONTENT, always=faulty.Slow(6_000_000))
        cache = str(tmp_path / "cache")
        runs = (fetch_it(cache=cache, sha256=None, destination=str(tmp_path / str(n))) for n in range(3))
        receipts = await asyncio.gather(*runs)
        assert {receipt.path for receipt in receipts} == {f"{cache}/sha256/{SHA256}/model.pth"}
        assert len(server.requests) == 3
        assert list((tmp_path / "cache" / "incoming").iterdir()) == []


async def test_a_file_on_disk_is_hashed_in_place_and_never_removed(tmp_path):
    model = tmp_path / "model.pth"
    model.write_bytes(CONTENT)
    out = tmp_path / "out"
    receipt = await fetch(FetchConfig(uri=f"file://{model}", sha256=SHA256, destination=str(out)))
    assert (receipt.path, receipt.sha256) == (str(model), SHA256)
    assert [path.name for path in out.iterdir()] == ["receipt.json"]
    error = await refused(fetch(FetchConfig(uri=str(model), sha256="0" * 64, destination=str(out))))
    assert error.reason == contract.CHECKSUM_MISMATCH
    assert model.read_bytes() == CONTENT


async def test_a_folder_on_disk_is_copied_into_a_cache(tmp_path):
    (tmp_path / "bert" / "sub").mkdir(parents=True)
    (tmp_path / "bert" / "config.json").write_text("{}")
    (tmp_path / "bert" / "sub" / "w").write_bytes(CONTENT)
    plain = await fetch(FetchConfig(uri=f"file://{tmp_path}/bert/", destination=str(tmp_path / "a")))
    fields = {"uri": f"{tmp_path}/bert", "destination": str(tmp_path / "b"), "cache": str(tmp_path / "cache")}
    cached = await fetch(FetchConfig(**fields, sha256=plain.sha256))
    assert cached.path == f"{tmp_path}/cache/sha256/{plain.sha256}/bert"
    assert (await fetch(FetchConfig(**fields, sha256=plain.sha256))).cached
