"""A PDF is read in a process that ends with its request or its time, and holds up nobody else."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from turnloom.adapters.pdf import MEMORY_BYTES, MIB, PdfReader
from turnloom.adapters.pdf_child import REFUSED
from turnloom.domain.errors import InvalidRequest

ECHO = ("-c", "import signal, sys; text = sys.stdin.read(); text == 'endless' and signal.pause(); print(text)")
"""A reader that gives the PDF itself as its text, and never ends with one."""


def pdf(*bodies: bytes) -> tuple[bytes, bytes, bytes]:
    """The objects of a PDF, numbered from 1 and the first its root; its cross-reference table; and the rest."""
    objects, offsets = b"%PDF-1.4\n", []
    for number, body in enumerate(bodies, 1):
        offsets.append(b"%010d 00000 n \n" % len(objects))
        objects += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = b"xref\n0 %d\n0000000000 65535 f \n" % (len(bodies) + 1) + b"".join(offsets)
    trailer = b"trailer\n<< /Size %d /Root 1 0 R >>\n" % (len(bodies) + 1)
    return objects, table, trailer + b"startxref\n%d\n%%%%EOF" % len(objects)


def stream(content: bytes, keys: bytes = b"") -> bytes:
    packed = zlib.compress(content, 9)
    return b"<< /Length %d /Filter /FlateDecode %s >>\nstream\n%s\nendstream" % (len(packed), keys, packed)


CATALOG = b"<< /Type /Catalog /Pages 2 0 R >>"
FONT = b"<< /Font << /F1 << /Type /Font /Subtype /Type1 /BaseFont /Helvetica >> >> >>"
PAGE = b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 9 9] /Resources %s /Contents 4 0 R >>" % FONT
TEXT = stream(b"BT /F1 1 Tf (Hello) Tj ET")


def pages(count: int) -> bytes:
    return b"<< /Type /Pages /Kids [%s] /Count %d >>" % (b"3 0 R " * count, count)


def slow_pdf() -> bytes:
    """A PDF of 22 KB whose thousand pages share one stream of 200,000 operators: some hours of work."""
    return b"".join(pdf(CATALOG, pages(1000), PAGE, stream(b"BT /F1 1 Tf (a) Tj ET\n" * 200_000)))


async def refusal(reader: PdfReader, content: bytes) -> str:
    with pytest.raises(InvalidRequest) as raised:
        await reader.text(content, "me")
    assert raised.value.code == "unsupported_file"
    return raised.value.message


async def end(*tasks: asyncio.Task[str]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_pdf_that_takes_too_long_is_ended() -> None:
    content = slow_pdf()
    assert len(content) < 25_000
    assert "longer than 1 seconds" in await refusal(PdfReader(1), content)


async def test_the_pdfs_of_one_owner_do_not_hold_up_those_of_another() -> None:
    reader = PdfReader(600, ECHO)
    endless = [asyncio.create_task(reader.text(b"endless", "a")) for _ in range(20)]
    assert await reader.text(b"text", "b") == "text\n"
    assert not any(task.done() for task in endless)
    await end(*endless)
    assert await reader.text(b"text", "a") == "text\n", "nobody's place is lost"


async def test_a_process_ends_when_its_request_is_cancelled(tmp_path: Path) -> None:
    os.mkfifo(pipe := tmp_path / "pid")
    program = f"import os, pathlib, signal; pathlib.Path({str(pipe)!r}).write_text(str(os.getpid())); signal.pause()"
    task = asyncio.create_task(PdfReader(600, ("-c", program)).text(b"", "me"))
    pid = int(await asyncio.to_thread(pipe.read_text))
    await end(task)
    assert task.cancelled()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_a_process_that_is_killed_is_no_error_of_ours() -> None:
    program = ("-c", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    assert "too much time or memory" in await refusal(PdfReader(600, program), b"x" * MIB)


async def test_a_process_has_the_packages_and_none_of_the_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    program = ("-c", "import os, pypdf; print(sorted(os.environ))")
    assert set(eval(await PdfReader(600, program).text(b"", "me"))) <= {"LD_LIBRARY_PATH", "LC_CTYPE", "PYTHONPATH"}


def child(content: bytes, *, memory: int = MEMORY_BYTES, seconds: int = 600) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "turnloom.adapters.pdf_child", str(MIB), str(memory), str(seconds)]
    env = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.run(command, input=content, env=env, capture_output=True)


OBJECTS, TABLE, TRAILER = pdf(CATALOG, pages(1), PAGE, TEXT)
PACKED = pdf(stream(b"1 0 " + CATALOG, b"/Type /ObjStm /N 1 /First 4"), pages(1), PAGE, TEXT)[0].replace(
    b"1 0 obj", b"9 0 obj"
)
"""A PDF whose root is packed into another object, without a table and a trailer."""


@pytest.mark.parametrize(
    "content",
    [
        OBJECTS + TABLE + TRAILER,
        OBJECTS,
        OBJECTS + b"%%EOF",
        OBJECTS + TRAILER,
        OBJECTS + TABLE[:30],
        OBJECTS + TABLE + TRAILER[:15],
        OBJECTS[: -len(b"endstream\nendobj\n")],
        OBJECTS + TABLE + TRAILER.partition(b"startxref")[0],
        OBJECTS + TABLE + TRAILER.partition(b"startxref")[0] + b"startxref\n99999999\n%%EOF",
        OBJECTS + TABLE + TRAILER.partition(b"startxref")[0] + b"startxref\nnowhere\n%%EOF",
        OBJECTS + TABLE.replace(b"00000000", b"00000001") + TRAILER,
        b"HTTP/1.1 200 OK\r\n\r\n" * 100 + OBJECTS + TABLE + TRAILER,
        b"HTTP/1.1 200 OK\r\n\r\n" * 100 + OBJECTS,
        OBJECTS.replace(b"/Type /Catalog", b"/Type/Catalog").replace(b"\n", b"\r\n"),
        PACKED,
    ],
    ids=[
        "whole",
        "objects alone",
        "no table or trailer",
        "no table",
        "cut off in the table",
        "cut off in the trailer",
        "cut off in a stream",
        "no startxref",
        "startxref behind the end",
        "startxref is no number",
        "wrong offsets",
        "text before the header",
        "text before the header, and no trailer",
        "other line ends",
        "root in an object stream",
    ],
)
async def test_a_pdf_is_read_whose_objects_can_be_found(content: bytes) -> None:
    assert (await PdfReader(60).text(content, "me")).strip() == "Hello"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"%PDF-1.4\n",
        b"<html>/Type /Catalog</html>",
        OBJECTS.replace(b"/Catalog", b"/Package"),
        b"%PDF-1.4\n1 0 obj\n" + CATALOG,
        b"%PDF-1.4\n1 0 obj\n" + b"[" * 100_000,
    ],
    ids=["empty", "header alone", "no PDF", "no root", "no pages", "deep"],
)
async def test_a_pdf_is_refused_whose_text_cannot_be_found(content: bytes) -> None:
    assert await refusal(PdfReader(60), content) == "The text of the PDF cannot be read: it is broken"


async def test_a_pdf_without_a_trailer_is_ended_too_when_it_takes_too_long() -> None:
    assert "longer than 1 seconds" in await refusal(PdfReader(1), slow_pdf().partition(b"xref")[0])


@pytest.mark.skipif(sys.platform == "win32", reason="there are no limits")
def test_a_process_ends_by_itself_when_its_processor_time_is_up() -> None:
    assert child(slow_pdf(), seconds=1).returncode < 0


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits memory")
def test_a_process_does_not_take_more_memory_than_it_may() -> None:
    ended = child(slow_pdf(), memory=160 * MIB)
    assert (ended.returncode, ended.stdout) == (REFUSED, b"reading it takes too much memory")
