"""The servers, what clients need to find them, and a look at what they hold that goes around the library."""

import base64
import datetime
import email.utils
import functools
import hashlib
import hmac
import itertools
import os
import shutil
import sys
import tempfile
import urllib.request
from urllib.parse import urlsplit

from servers.gcs import GoogleShim
from servers.process import CACHE, Process, free_ports

HERE = os.path.dirname(os.path.abspath(__file__))
NOWHERE = "http://127.0.0.1:9"
"""Nobody listens there: where clients would ask a cloud's machine for credentials, they are refused at once."""
HARMLESS = {
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_EC2_METADATA_SERVICE_ENDPOINT": NOWHERE,
    "AWS_METADATA_ENDPOINT": NOWHERE,
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "GCE_METADATA_HOST": "127.0.0.1:9",
    "GCE_METADATA_IP": "127.0.0.1:9",
    "NO_GCE_CHECK": "true",
    "CLOUDSDK_CONFIG": os.devnull,
    "NO_PROXY": "*",
}
"""For every client in a test: with these nothing but loopback is touched."""
REAL = ("AWS_", "AZURE_", "GOOGLE_", "GCE_", "CLOUDSDK_")
PROXIES = frozenset(["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"])
_numbers = itertools.count(1)


def lacking(kind):
    """Why there can be no such server here; empty where there can."""
    if kind == "ceph" and not os.access(os.path.join(CACHE, "ceph", "usr", "bin", "radosgw"), os.X_OK):
        return f"no Ceph in {CACHE} (tests/mirrors/servers/fetch.sh takes it from Debian's packages)"
    if kind == "azurite":
        if shutil.which("node") is None:
            return "no node, in which Azurite runs"
        if not os.path.exists(_AZURITE):
            return f"no Azurite in {CACHE} (tests/mirrors/servers/fetch.sh takes it from npm)"
    return ""


class S3:
    """Whatever speaks S3; here moto, which holds small things and looks at no signature."""

    scheme = "s3"
    keys = ("test", "testsecret")

    def __init__(self):
        code = (
            "from moto.server import ThreadedMotoServer as S; import sys;"
            "server = S('127.0.0.1', 0, verbose=False); server.start();"
            "print('ready', server.get_host_and_port()[1], flush=True); server._thread.join()"
        )
        self._process = Process([sys.executable, "-c", code], "ready", environ=HARMLESS)
        self.endpoint = f"http://127.0.0.1:{self._process.said.split()[1]}"

    def environ(self, endpoint):
        """What lets clients find the server at this endpoint, which may be a proxy's."""
        key, secret = self.keys
        return {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": key,
            "AWS_SECRET_ACCESS_KEY": secret,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_REGION": "us-east-1",
        }

    def client(self, endpoint=None, **config):
        """A client of boto3, which knows nothing of the environment."""
        import boto3
        from botocore.config import Config

        return boto3.session.Session().client(
            "s3",
            endpoint_url=endpoint or self.endpoint,
            aws_access_key_id=self.keys[0],
            aws_secret_access_key=self.keys[1],
            region_name="us-east-1",
            config=Config(s3={"addressing_style": "path"}, proxies={}, **config),
        )

    @functools.cached_property
    def _beside(self):
        return self.client()

    def make(self, bucket):
        self._beside.create_bucket(Bucket=bucket)

    def sizes(self, bucket, prefix=""):
        """What lies there: sizes by key."""
        pages = self._beside.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        return {item["Key"]: item["Size"] for page in pages for item in page.get("Contents", ())}

    def read(self, bucket, key):
        return self._beside.get_object(Bucket=bucket, Key=key)["Body"].read()

    def write(self, bucket, key, data):
        self._beside.put_object(Bucket=bucket, Key=key, Body=data)

    def remove(self, bucket, key):
        self._beside.delete_object(Bucket=bucket, Key=key)

    def uploads(self, bucket, prefix=""):
        """The multipart uploads that were begun and not ended: (key, id)."""
        pages = self._beside.get_paginator("list_multipart_uploads").paginate(Bucket=bucket, Prefix=prefix)
        return [(item["Key"], item["UploadId"]) for page in pages for item in page.get("Uploads", ())]

    @staticmethod
    def part(*numbers):
        """What is in the targets of the requests that send these parts of a file, or any; a regular expression."""
        return rf"partNumber=({'|'.join(map(str, numbers)) or '[0-9]+'})\b"

    asking = (("POST", "uploads$"), ("POST", "uploadId="))
    """The methods and targets of the requests that an upload begins and ends with."""

    def stop(self):
        self._process.stop()


class Ceph(S3):
    """Ceph's object gateway: signatures, digests and concurrency are real; its space is this machine's memory."""

    def __init__(self):
        self.place = tempfile.mkdtemp(prefix="holdfast-ceph-")
        port = free_ports(12)
        self._process = Process(
            [os.path.join(HERE, "ceph.sh"), self.place],
            "ready",
            itself=True,
            environ={"LAB_PORT": str(port), "LAB_SYSROOT": os.path.join(CACHE, "ceph")},
        )
        self.endpoint = f"http://127.0.0.1:{port}"

    def kill(self):
        """The gateway is killed; it comes back by itself after half a second."""
        with open(os.path.join(self.place, "gateway.pid"), encoding="ascii") as file:
            os.kill(int(file.read()), 9)


class Google:
    """Google Cloud Storage, in front of a server that speaks S3; see `gcs.py` for what it is not."""

    scheme = "gs"

    def __init__(self, behind):
        self._behind = behind
        self._shim = GoogleShim(behind.endpoint)
        self._shim.__enter__()
        self.endpoint = self._shim.url
        for name in ("make", "sizes", "read", "write", "remove", "uploads", "part", "asking"):
            setattr(self, name, getattr(behind, name))

    def environ(self, endpoint):
        return {"GOOGLE_BASE_URL": endpoint, "GOOGLE_BEARER_TOKEN": "test", "GOOGLE_ALLOW_HTTP": "true"}

    def stop(self):
        self._shim.__exit__()


_AZURITE = os.path.join(CACHE, "azurite", "node_modules", "azurite", "dist", "src", "blob", "main.js")
_ACCOUNT = "devstoreaccount1"
# Azurite's, printed in its documentation: no secret.
_ACCOUNT_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


class Azurite:
    """Azure's blob storage, as Microsoft's own emulator."""

    scheme = "az"

    def __init__(self):
        options = ["--disableTelemetry", "--skipApiVersionCheck", "--inMemoryPersistence"]
        self._process = Process(
            ["node", _AZURITE, "--blobHost", "127.0.0.1", "--blobPort", "0", *options],
            "successfully listens on",
        )
        self.endpoint = f"{self._process.said.split()[-1]}/{_ACCOUNT}"

    def environ(self, endpoint):
        return {
            "AZURE_STORAGE_ENDPOINT": endpoint,
            "AZURE_STORAGE_ACCOUNT_NAME": _ACCOUNT,
            "AZURE_STORAGE_ACCOUNT_KEY": _ACCOUNT_KEY,
            "AZURE_ALLOW_HTTP": "true",
        }

    def signature(self, allows="rwdlc", days=1):
        """What lets its holder do this with the whole account, for so long; a query."""
        from azure.storage.blob import ResourceTypes, generate_account_sas

        end = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days)
        kinds = ResourceTypes(container=True, object=True)
        return generate_account_sas(_ACCOUNT, _ACCOUNT_KEY, kinds, allows, end)

    def make(self, bucket):
        """Creates a container, which clients of objects cannot."""
        path, date = f"{urlsplit(self.endpoint).path}/{bucket}", email.utils.formatdate(usegmt=True)
        text = f"PUT\n\n\n\n\n\n\n\n\n\n\n\nx-ms-date:{date}\nx-ms-version:2021-08-06\n/{_ACCOUNT}{path}\nrestype:container"
        digest = hmac.digest(base64.b64decode(_ACCOUNT_KEY), text.encode(), hashlib.sha256)
        request = urllib.request.Request(
            f"{self.endpoint}/{bucket}?restype=container",
            method="PUT",
            headers={
                "x-ms-date": date,
                "x-ms-version": "2021-08-06",
                "Authorization": f"SharedKey {_ACCOUNT}:{base64.b64encode(digest).decode()}",
            },
        )
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request):
            pass

    def client(self):
        """Microsoft's client, which knows nothing of the environment."""
        from azure.core.credentials import AzureNamedKeyCredential
        from azure.storage.blob import BlobServiceClient

        return BlobServiceClient(self.endpoint, credential=AzureNamedKeyCredential(_ACCOUNT, _ACCOUNT_KEY))

    @functools.cached_property
    def _beside(self):
        return self.client()

    def sizes(self, bucket, prefix=""):
        """What lies there: sizes by key."""
        found = self._beside.get_container_client(bucket).list_blobs(name_starts_with=prefix)
        return {blob.name: blob.size for blob in found}

    def read(self, bucket, key):
        return self._beside.get_blob_client(bucket, key).download_blob().readall()

    def write(self, bucket, key, data):
        self._beside.get_blob_client(bucket, key).upload_blob(data, overwrite=True)

    def remove(self, bucket, key):
        self._beside.get_blob_client(bucket, key).delete_blob()

    def uploads(self, bucket, prefix=""):
        """The blobs of which there are blocks and no list: (key, "")."""
        container = self._beside.get_container_client(bucket)
        there = container.list_blobs(name_starts_with=prefix, include=["uncommittedblobs"])
        return [(name, "") for name in sorted({blob.name for blob in there} - set(self.sizes(bucket)))]

    @staticmethod
    def part(*numbers):
        """What is in the targets of the requests that send these parts of a file, or any; a regular expression."""
        ids = [base64.b64encode(b"hf%07d" % number).decode() for number in numbers]
        return f"comp=block&blockid=({'|'.join(ids)})"

    asking = (("GET", "comp=blocklist"), ("PUT", "comp=blocklist"))
    """The methods and targets of the requests that an upload begins and ends with."""

    def blocks(self, bucket, key):
        """The ids of the blocks of a blob of which no list was put, and their sizes."""
        from azure.core.exceptions import ResourceNotFoundError

        try:
            _, there = self._beside.get_blob_client(bucket, key).get_block_list("all")
        except ResourceNotFoundError:
            return {}
        return {block.id: block.size for block in there}

    def stop(self):
        self._process.stop()


class Bucket:
    """A new bucket, or container, of a server, at `url`; nobody else uses it."""

    def __init__(self, server):
        self.server, self.name = server, f"test-{os.getpid()}-{next(_numbers)}"
        server.make(self.name)
        self.url = f"{server.scheme}://{self.name}"

    def __repr__(self):
        return self.url

    def environ(self, endpoint=None):
        """What clients need to find it, through a proxy where its endpoint is given."""
        return self.server.environ(endpoint or self.server.endpoint)

    def sizes(self, prefix=""):
        return self.server.sizes(self.name, prefix)

    def keys(self, prefix=""):
        return sorted(self.sizes(prefix))

    def read(self, key):
        return self.server.read(self.name, key)

    def write(self, key, data):
        self.server.write(self.name, key, data)

    def remove(self, key):
        self.server.remove(self.name, key)

    def uploads(self, prefix=""):
        return self.server.uploads(self.name, prefix)

    def part(self, *numbers):
        return self.server.part(*numbers)
