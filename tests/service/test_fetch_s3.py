"""The fetcher against a real S3 server, and against a faulty one where a real one would not misbehave."""

import hashlib
import os

import pytest
from testkit import faulty_http as faulty
from testkit.s3_server import S3Server
from torchmodel_runtime import config as contract
from torchmodel_runtime.config import FetchConfig
from torchmodel_runtime.fetch import FetchError, FetchSettings, RetryPolicy, Timeouts, fetch

CONTENT = os.urandom(5_000_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
QUICK = FetchSettings(
    timeouts=Timeouts(connect_s=2, stall_s=0.5),
    retry=RetryPolicy(first_delay_s=0.01, max_delay_s=0.02),
    progress_interval_s=0,
)


@pytest.fixture(scope="module")
def s3(tmp_path_factory):
    with S3Server(tmp_path_factory.mktemp("s3")) as server:
        server.create_bucket("models")
        server.upload("models", "flowers/model.pth", CONTENT)
        server.upload("models", "odd/a b+c%20ü.pth", CONTENT)
        server.upload("models", "bert/config.json", b"{}")
        server.upload("models", "bert/1_Pooling/config.json", b"[]")
        server.upload("models", "bert/model.safetensors", CONTENT)
        server.upload("models", "bert/empty.txt", b"")
        server.request("PUT", "/models/bert/1_Pooling/")
        server.request("PUT", "/models/bert/nothing/")
        server.upload("models", "bert-large/other.txt", b"not part of bert")
        yield server


@pytest.fixture
def fetch_it(s3, tmp_path):
    async def run(uri, environment=None, **changes):
        fields = {"uri": uri, "destination": str(tmp_path / "out"), **changes}
        return await fetch(
            FetchConfig(**fields), environment=s3.environment if environment is None else environment, settings=QUICK
        )

    return run


async def refused(operation):
    with pytest.raises(FetchError) as caught:
        await operation
    assert "test-secret-key" not in caught.value.message + caught.value.next_step
    return caught.value


async def test_an_object_arrives(fetch_it, tmp_path):
    receipt = await fetch_it("s3://models/flowers/model.pth", sha256=SHA256)
    assert (receipt.path, receipt.size_bytes) == ("model.pth", len(CONTENT))
    assert (tmp_path / "out" / "model.pth").read_bytes() == CONTENT


async def test_a_key_with_odd_characters_is_taken_as_it_is(fetch_it):
    assert (await fetch_it("s3://models/odd/a b+c%20ü.pth", sha256=SHA256)).path == "a_b_c_20_.pth"


async def test_a_folder_arrives_with_the_folders_digest(fetch_it, tmp_path):
    receipt = await fetch_it("s3://models/bert/")
    out = tmp_path / "out" / "bert"
    files = {
        "1_Pooling/config.json": b"[]",
        "config.json": b"{}",
        "empty.txt": b"",
        "model.safetensors": CONTENT,
    }
    found = {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert found == files
    lines = "".join(f"{hashlib.sha256(files[path]).hexdigest()}  {path}\n" for path in sorted(files))
    assert receipt.sha256 == hashlib.sha256(lines.encode()).hexdigest()
    assert (receipt.files, receipt.size_bytes) == (4, len(CONTENT) + 4)
    assert (await fetch_it("s3://models/bert/", sha256=receipt.sha256)).cached


async def test_a_second_run_with_a_cache_asks_nobody(fetch_it, tmp_path):
    cache = str(tmp_path / "cache")
    await fetch_it("s3://models/flowers/model.pth", sha256=SHA256, cache=cache)
    nobody = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}
    receipt = await fetch_it("s3://models/flowers/model.pth", nobody, sha256=SHA256, cache=cache)
    assert receipt.cached


async def test_a_mounted_secret_is_used_alone(fetch_it, s3, tmp_path, monkeypatch):
    # obstore would take these from the process if it were not told otherwise
    monkeypatch.setenv("AWS_SESSION_TOKEN", "stale")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    monkeypatch.setenv("AWS_VIRTUAL_HOSTED_STYLE_REQUEST", "true")
    secret = s3.write_secret(tmp_path / "secret")
    await fetch_it("s3://models/flowers/model.pth", {}, sha256=SHA256, credentials=str(secret))


@pytest.mark.parametrize(
    ("uri", "changes", "reason", "parts"),
    [
        pytest.param(
            "s3://models/none.pth", {}, contract.CHECKPOINT_NOT_FOUND,
            ["'none.pth'", "'models'", "http://127.0.0.1", "the bucket exists, the key does not"], id="no such key",
        ),
        pytest.param(
            "s3://nobucket/a.pth", {}, contract.CHECKPOINT_NOT_FOUND, ["'nobucket'", "the bucket does not exist"],
            id="no such bucket",
        ),
        pytest.param(
            "s3://nobucket/a/", {}, contract.CHECKPOINT_NOT_FOUND, ["the bucket does not exist"], id="folder of no bucket"
        ),
        pytest.param("s3://models/none/", {}, contract.CHECKPOINT_NOT_FOUND, ["s3://models/none/"], id="empty folder"),
        pytest.param("s3://models/bert", {}, contract.CHECKPOINT_NOT_FOUND, ["'bert'"], id="folder without its slash"),
        pytest.param(
            "s3://models/flowers/model.pth", {"AWS_SECRET_ACCESS_KEY": "wrong"}, contract.ACCESS_DENIED,
            ["SignatureDoesNotMatch"], id="wrong secret",
        ),
        pytest.param(
            "s3://models/bert/", {"AWS_ACCESS_KEY_ID": "wrong"}, contract.ACCESS_DENIED, ["InvalidAccessKeyId"],
            id="wrong key, folder",
        ),
        pytest.param(
            "s3://models/flowers/model.pth", {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""},
            contract.ACCESS_DENIED, ["unsigned"], id="no credentials",
        ),
    ],
)  # fmt: skip
async def test_what_the_server_refuses(fetch_it, s3, uri, changes, reason, parts):
    error = await refused(fetch_it(uri, {**s3.environment, **changes}))
    assert (error.reason, error.retryable) == (reason, False)
    assert all(part in error.message for part in parts), error.message


async def test_a_mismatch_leaves_nothing(fetch_it, tmp_path):
    error = await refused(fetch_it("s3://models/bert/", sha256="0" * 64))
    assert error.reason == contract.CHECKSUM_MISMATCH
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".incoming"]


async def test_an_endpoint_that_is_not_there(fetch_it):
    error = await refused(fetch_it("s3://models/a.pth", {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}))
    assert (error.reason, error.retryable) == (contract.FETCH_FAILED, True)
    assert "http://127.0.0.1:9: no connection" in error.message


class TestFaults:
    """Unsigned requests to a server with one fault a path; an S3 object is a GET of /bucket/key."""

    @pytest.fixture
    async def server(self):
        async with faulty.FaultyServer() as server:
            yield server

    @pytest.fixture
    def fetch_faulty(self, server, fetch_it):
        async def run(uri="s3://models/a.pth", **changes):
            environment = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.port}"}
            return await fetch_it(uri, environment, **changes)

        return run

    @pytest.mark.parametrize(
        "faults",
        [
            pytest.param([faulty.Cut(0)], id="cut before the first byte"),
            pytest.param([faulty.Cut(600_000)] * 7, id="cut more often than the tries without progress"),
            pytest.param([faulty.Stall(2_500_000)], id="stall"),
            pytest.param([faulty.Answer(503), faulty.Answer(500), faulty.Answer(429)], id="503, 500, 429, then fine"),
        ],
    )
    async def test_that_are_overcome(self, server, fetch_faulty, tmp_path, faults):
        server.serve("/models/a.pth", CONTENT, *faults)
        await fetch_faulty(sha256=SHA256)
        assert (tmp_path / "out" / "a.pth").read_bytes() == CONTENT

    async def test_after_a_cut_only_the_rest_is_sent(self, server, fetch_faulty):
        server.serve("/models/a.pth", CONTENT, faulty.Cut(3_500_000))
        await fetch_faulty(sha256=SHA256)
        assert server.requests[1].headers["if-match"] == '"one"'
        # obstore hands over whole chunks, so less than one is asked for twice
        assert server.bytes_sent <= len(CONTENT) + (1 << 20)

    async def test_an_object_that_changes_midway_is_fetched_anew(self, server, fetch_faulty):
        other = os.urandom(2_000_000)
        precondition_failed = faulty.Answer(412)
        server.serve("/models/a.pth", CONTENT, faulty.Cut(3_000_000), precondition_failed, faulty.NewContent(other))
        assert (await fetch_faulty()).sha256 == hashlib.sha256(other).hexdigest()

    async def test_that_last_end_the_fetch(self, server, fetch_faulty):
        server.serve("/models/a.pth", CONTENT, always=faulty.Answer(503))
        error = await refused(fetch_faulty())
        assert (error.reason, error.retryable, len(server.requests)) == (contract.FETCH_FAILED, True, 5)

    async def test_a_listing_with_a_key_that_climbs_out(self, server, fetch_faulty, tmp_path):
        for key in ("bert/../../../escape", "bert//x", "bert/a\\..\\b", "bert/a&#10;b"):
            entry = f"<Contents><Key>{key}</Key><Size>1</Size><ETag>e</ETag>"
            entry += "<LastModified>2026-11-23T20:30:00.000Z</LastModified></Contents>"
            body = f"<ListBucketResult><IsTruncated>false</IsTruncated>{entry}</ListBucketResult>"
            server.serve("/models", b"", always=faulty.Answer(200, {"Content-Type": "application/xml"}, body.encode()))
            error = await refused(fetch_faulty("s3://models/bert/"))
            assert (error.reason, error.retryable) == (contract.CHECKPOINT_INVALID, False), key
        assert not [path for path in tmp_path.rglob("*") if path.name == "escape"]
