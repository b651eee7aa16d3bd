"""Credentials from a mounted Secret or the environment."""

import pytest
from torchmodel_runtime.config import CREDENTIALS_INVALID
from torchmodel_runtime.fetch.credentials import ALLOWED_NAMES, read_credentials
from torchmodel_runtime.fetch.errors import FetchError
from torchmodel_runtime.fetch.locations import parse_location

BUCKET = parse_location("s3://models/a.pth")
WEB = parse_location("https://x.org/a.pth")
KEYS = {"AWS_ACCESS_KEY_ID": "AK", "AWS_SECRET_ACCESS_KEY": "HUSH"}


def mount(folder, values):
    """A folder as the kubelet mounts a Secret: each key a link into ..data, itself a link."""
    dated = folder / "..2026_11_23_20_30"
    dated.mkdir(parents=True)
    (folder / "..data").symlink_to(dated.name)
    for name, value in values.items():
        (dated / name).write_bytes(value if isinstance(value, bytes) else value.encode())
        (folder / name).symlink_to(f"..data/{name}")
    return str(folder)


def test_a_mounted_secret_is_read_and_trimmed(tmp_path):
    values = {
        **KEYS,
        "AWS_SESSION_TOKEN": "t\n",
        "AWS_REGION": "eu-central-1",
        "AWS_ENDPOINT_URL": "http://minio:9000/",
    }
    found = read_credentials(mount(tmp_path, values), {"AWS_SESSION_TOKEN": "other"}, BUCKET)
    assert (found.access_key_id, found.secret_access_key, found.session_token) == ("AK", "HUSH", "t")
    assert (found.region, found.endpoint) == ("eu-central-1", "http://minio:9000")


def test_without_a_folder_the_environment_counts():
    found = read_credentials(None, {**KEYS, "PATH": "/bin", "AWS_SESSION_TOKEN": ""}, BUCKET)
    assert (found.access_key_id, found.session_token) == ("AK", "")


def test_with_a_folder_the_environment_does_not_count(tmp_path):
    folder = mount(tmp_path, {"AWS_ENDPOINT_URL": "https://minio"})
    found = read_credentials(folder, {**KEYS, "AWS_WEB_IDENTITY_TOKEN_FILE": "/x"}, BUCKET)
    assert found.access_key_id == ""
    assert not found.has_workload_identity


def test_no_credentials_at_all_is_fine():
    assert read_credentials(None, {}, WEB).authorization == ""


def test_credentials_do_not_show_in_their_repr(tmp_path):
    folder = mount(tmp_path, {**KEYS, "authorization": "Bearer HUSH", "AWS_SESSION_TOKEN": "HUSH"})
    assert "HUSH" not in repr(read_credentials(folder, {}, WEB))


@pytest.mark.parametrize(
    ("location", "values", "part_of_message"),
    [
        pytest.param(
            BUCKET, {**KEYS, "AWS_KEY": "HUSH"}, "unknown keys in the credentials folder: AWS_KEY", id="unknown key"
        ),
        pytest.param(
            BUCKET, {"AWS_ACCESS_KEY_ID": "HUSH"}, "AWS_SECRET_ACCESS_KEY is missing", id="key without secret"
        ),
        pytest.param(
            BUCKET, {"AWS_SECRET_ACCESS_KEY": "HUSH"}, "AWS_ACCESS_KEY_ID is missing", id="secret without key"
        ),
        pytest.param(BUCKET, {"AWS_SESSION_TOKEN": "HUSH"}, "AWS_ACCESS_KEY_ID is missing", id="token alone"),
        pytest.param(BUCKET, {**KEYS, "AWS_REGION": " \n"}, "AWS_REGION in the Secret is empty", id="empty value"),
        pytest.param(BUCKET, {**KEYS, "AWS_REGION": "a\nb"}, "line break", id="two lines"),
        pytest.param(BUCKET, {**KEYS, "AWS_REGION": b"\xff\xfe"}, "not UTF-8", id="binary value"),
        pytest.param(BUCKET, {**KEYS, "AWS_REGION": "x" * 70_000}, "larger than", id="huge value"),
        pytest.param(
            BUCKET, {**KEYS, "AWS_ENDPOINT_URL": "minio:9000"}, "AWS_ENDPOINT_URL", id="endpoint without scheme"
        ),
        pytest.param(
            BUCKET, {**KEYS, "AWS_ENDPOINT_URL": "http://HUSH:HUSH@m"}, "AWS_ENDPOINT_URL", id="user in endpoint"
        ),
        pytest.param(BUCKET, {**KEYS, "AWS_ENDPOINT_URL": "http://m:x"}, "AWS_ENDPOINT_URL", id="bad port in endpoint"),
        pytest.param(BUCKET, {"authorization": "HUSH"}, "none of the given keys", id="http credentials for s3"),
        pytest.param(WEB, KEYS, "none of the given keys", id="s3 credentials for http"),
        pytest.param(WEB, {}, "none of the given keys (none)", id="empty Secret"),
    ],
)
def test_credentials_that_cannot_work(tmp_path, location, values, part_of_message):
    with pytest.raises(FetchError) as caught:
        read_credentials(mount(tmp_path, values), {}, location)
    assert caught.value.reason == CREDENTIALS_INVALID
    assert part_of_message in caught.value.message
    assert "HUSH" not in caught.value.message + caught.value.next_step


def test_an_unknown_key_is_answered_with_the_allowed_ones(tmp_path):
    with pytest.raises(FetchError) as caught:
        read_credentials(mount(tmp_path, {"token": "x"}), {}, WEB)
    assert all(name in caught.value.next_step for name in ALLOWED_NAMES)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(FetchError) as caught:
        read_credentials(str(tmp_path / "none"), {}, WEB)
    assert caught.value.reason == CREDENTIALS_INVALID
