"""Credentials that run out while a training goes on, and are renewed beside it."""

import time

import pytest
from bucket_runs import held
from mirrored_runs import LAST, content
from servers.faultproxy import FaultProxy, _answer, _drop

import holdfast
from holdfast import Every


class Guard(FaultProxy):
    """Lets only requests pass that are signed with the key that is valid at this moment."""

    valid, refused = "AKIAFIRST", 0

    async def exchange(self, head, reader, writer):
        if f"Credential={self.valid}/" in (head.get("authorization") or ""):
            return await super().exchange(head, reader, writer)
        self.refused += 1
        await _drop(reader, int(head.get("content-length") or 0))
        writer.write(_answer(400, "ExpiredToken", body=head.line.split(" ")[0] != "HEAD"))
        await writer.drain()
        return True


@pytest.mark.parametrize("size", [2000, 5_000_000], ids=["small", "in parts"])
def test_renewed_in_the_file(size, bucket, moto, tmp_path, monkeypatch):
    """A mirror goes on as soon as the file that the credentials came from holds valid ones again."""
    url, path = f"s3://{bucket}/runs/first", tmp_path / "credentials"

    def write(key):
        path.write_text(f"[default]\naws_access_key_id = {key}\naws_secret_access_key = planted+secret/key\n")

    with Guard(moto) as guard:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(path))
        monkeypatch.setenv("AWS_ENDPOINT_URL", guard.url)
        write("AKIAFIRST")
        run = holdfast.Run(tmp_path / "run", mirrors=[url], keep=LAST, every=Every(steps=1))
        run.resume()

        def save(step):
            run.state.update(content(step, size))
            run.save(step=step, wait=True)

        save(1)
        while len(guard.requests("PUT", "checkpoint.json")) < 1:
            time.sleep(0.01)
        guard.valid = "AKIASECOND"
        save(2)
        while not guard.refused:
            time.sleep(0.01)
        write("AKIASECOND")
        run.close()
        assert held(url) == [1, 2]
