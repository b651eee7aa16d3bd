"""What a URI means and how it may be shown."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torchmodel_runtime.config import CHECKPOINT_INVALID, CONFIG_INVALID
from torchmodel_runtime.fetch.errors import FetchError
from torchmodel_runtime.fetch.locations import (
    BucketLocation,
    DiskLocation,
    WebLocation,
    check_relative_path,
    make_safe_name,
    parse_location,
    redact_uri,
)


@pytest.mark.parametrize(
    ("uri", "location"),
    [
        pytest.param("/models/a.pth", DiskLocation("/models/a.pth", "a.pth"), id="absolute path"),
        pytest.param("file:///models/a.pth", DiskLocation("/models/a.pth", "a.pth"), id="file URI"),
        pytest.param("file://localhost/models/bert/", DiskLocation("/models/bert/", "bert"), id="folder on localhost"),
        pytest.param("file:///a%20b/c%25.pth", DiskLocation("/a b/c%.pth", "c_.pth"), id="percent-encoded path"),
        pytest.param("s3://models/a/b.pth", BucketLocation("models", "a/b.pth", False, "b.pth"), id="object"),
        pytest.param("s3://models/a/bert/", BucketLocation("models", "a/bert", True, "bert"), id="prefix"),
        pytest.param("s3://models", BucketLocation("models", "", True, "models"), id="whole bucket"),
        pytest.param("s3://models/a%20b.pth", BucketLocation("models", "a%20b.pth", False, "a_20b.pth"), id="raw key"),
        pytest.param("https://x.org/a.pth", WebLocation("https://x.org/a.pth", "a.pth"), id="https"),
        pytest.param(
            "HTTP://x.org:80/a%2Fb.pth?v=1#f", WebLocation("http://x.org:80/a%2Fb.pth?v=1", "a_b.pth"), id="http"
        ),
        pytest.param(
            "https://u:p%40@x.org/a.pth",
            WebLocation("https://x.org/a.pth", "a.pth", "Basic dTpwQA=="),
            id="user in URI",
        ),
    ],
)
def test_uris_that_mean_something(uri, location):
    assert parse_location(uri) == location


@pytest.mark.parametrize(
    ("uri", "part_of_message"),
    [
        pytest.param("", "empty", id="empty"),
        pytest.param("a.pth", "file://, http://, https://, s3://", id="relative path"),
        pytest.param("ftp://x/a.pth", "got ftp, allowed are file://", id="unknown scheme"),
        pytest.param("gs://x/a.pth", "got gs", id="scheme of a later version"),
        pytest.param("s3://models/a\nb", "control character", id="line break"),
        pytest.param("s3://a_b@c/k", "bucket name", id="user in s3 URI"),
        pytest.param("s3://models/a//b", "empty parts", id="empty part in a key"),
        pytest.param("s3://models/../b", "'..'", id="dots in a key"),
        pytest.param("file://server/a.pth", "no host", id="file URI with a host"),
        pytest.param("file:///a%00b", "NUL", id="NUL in a path"),
        pytest.param("/models/../etc/shadow", "'..'", id="dots in a path"),
        pytest.param("https:///a.pth", "no host", id="no host"),
        pytest.param("https://x.org:port/a.pth", "port", id="port that is no number"),
        pytest.param("https://x.org/folder/", "names no file", id="folder over http"),
    ],
)
def test_uris_that_are_refused(uri, part_of_message):
    with pytest.raises(FetchError) as caught:
        parse_location(uri)
    assert caught.value.reason == CONFIG_INVALID
    assert part_of_message in caught.value.message
    assert not caught.value.retryable


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("https://user:pass@x.org/a.pth?X-Amz-Signature=s#t", "https://redacted@x.org/a.pth?redacted"),
        ("https://a@b:c@x.org/a.pth", "https://redacted@x.org/a.pth"),
        ("https://x.org?token=s", "https://x.org?redacted"),
        ("s3://models/a.pth", "s3://models/a.pth"),
        ("s3://AK:SK@models/a.pth?x=y", "s3://redacted@models/a.pth?redacted"),
        ("/models/a?b.pth", "/models/a?b.pth"),
    ],
)
def test_what_is_shown_of_a_uri(uri, shown):
    assert redact_uri(uri) == shown


letters = st.text("abcXYZ019%:;,+=&.@-_~!$", min_size=1, max_size=20)


@given(st.sampled_from(["http", "https", "s3", "gs"]), letters, letters)
def test_secrets_of_a_uri_are_never_shown_nor_in_a_message(scheme, user, query):
    user, query = f"HUSH{user}", f"HUSH{query}"
    uri = f"{scheme}://{user}@host/a.pth?{query}"
    assert "HUSH" not in redact_uri(uri)
    said = ""
    try:
        parse_location(uri)
    except FetchError as error:
        said = error.message + error.next_step
    assert "HUSH" not in said


@given(st.text())
def test_a_safe_name_is_one_plain_path_component(segment):
    name = make_safe_name(segment)
    assert 1 <= len(name) <= 139
    assert not name.startswith(".")
    assert name != "receipt.json"
    assert all(letter.isascii() and (letter.isalnum() or letter in "._-") for letter in name)
    assert make_safe_name(name) == name


def test_a_long_name_keeps_its_suffix():
    assert make_safe_name("a" * 300 + ".safetensors").endswith("a.safetensors")


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/etc/passwd",
        "..",
        "a/../../b",
        "a/./b",
        "a//b",
        "a/",
        "a\\b",
        "a\0b",
        "a\nb",
        "a" * 256,
        "a/" * 600 + "a",
        "\udc80",
    ],
)
def test_paths_that_could_leave_a_folder_are_refused(path):
    with pytest.raises(FetchError) as caught:
        check_relative_path(path)
    assert caught.value.reason == CHECKPOINT_INVALID


@given(st.text())
def test_an_accepted_path_stays_below_its_folder(path):
    from pathlib import PurePosixPath

    try:
        check_relative_path(path)
    except FetchError:
        return
    whole = PurePosixPath("/root") / path
    assert ".." not in whole.parts
    assert whole.is_relative_to("/root")
    assert whole != PurePosixPath("/root")


def test_ordinary_names_are_accepted():
    for path in ("model.safetensors", "1_Pooling/config.json", ".gitattributes", "a b/ü.txt", "..a/b..", "a%20b+c"):
        assert check_relative_path(path) == path
