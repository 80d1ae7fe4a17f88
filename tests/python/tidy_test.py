"""The rules of the code base, as tests: who includes whom, sizes, markers, self-contained headers.

Run by pytest and by ctest (label tidy). tests/tidy_exceptions.txt lists what may break a size limit,
each with its reason.
"""

from __future__ import annotations

import ast
import concurrent.futures
import functools
import hashlib
import json
import os
import pathlib
import re
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
CACHE = ROOT / "build" / "tidy"
EXCEPTIONS = ROOT / "tests" / "tidy_exceptions.txt"

MAX_FILE_LINES = 600
MAX_FUNCTION_LINES = 70

# An arrow reads "includes"; a folder may always include itself.
INCLUDES = {
    "daemon": {"codec", "tiers", "transport", "kernels", "config"},
    "replay": {"daemon", "tiers", "kernels", "config"},
    "client": {"transport", "kernels", "config"},
    "codec": {"kernels", "config"},
    "tiers": {"kernels", "config"},
    "transport": {"config"},
    "kernels": {"config"},
    "config": set(),
}
ANYTHING = {"tests", "bench", "examples"}
# Look at files without a daemon; part of the command only, not of the client library.
ALSO = {"client/cli/store_command.cc": {"tiers"}, "client/cli/codec_command.cc": {"codec"},
        "client/cli/replay_command.cc": {"replay", "tiers"}, "client/cli/replay_tiers.cc": {"replay"}}
CPP_SUFFIXES = {".h", ".cc", ".cu", ".cuh"}
ACCESS = {"public", "protected", "private"}
FORBIDDEN_FOLDERS = {"common", "util", "utils", "base", "helpers"}


@functools.cache
def sources() -> list[pathlib.Path]:
    """What git tracks or would track: no build output, no copies of others' code."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout
    paths = [pathlib.Path(name) for name in listed.split("\0") if name]
    return sorted(path for path in paths if (ROOT / path).is_file())


def cpp_sources() -> list[pathlib.Path]:
    return [path for path in sources() if path.suffix in CPP_SUFFIXES]


@functools.cache
def text_of(path: pathlib.Path) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def quoted_includes(text: str) -> list[str]:
    return re.findall(r'^\s*#\s*include\s+"([^"]+)"', text, re.MULTILINE)


def include_violations(path: pathlib.PurePath, text: str) -> list[str]:
    folder = path.parts[0]
    if folder in ANYTHING:
        return []
    if folder not in INCLUDES:
        return [f"{path}: folder {folder}/ is not one of the design's"]
    allowed = INCLUDES[folder] | {folder} | ALSO.get(str(path), set())
    # A first component that is no folder of ours is a library's (absl/...); without any, the
    # name is relative to the including file, which hides where it points.
    ours = INCLUDES.keys() | ANYTHING
    return [
        f'{path}: includes "{name}"; {folder}/ may include only {", ".join(sorted(allowed))}'
        for name in quoted_includes(text)
        if (name.split("/")[0] in ours or "/" not in name) and name.split("/")[0] not in allowed
    ]


def without_comments_and_literals(text: str) -> str:
    """The same number of lines, with comments, strings and characters emptied."""

    def emptied(match: re.Match[str]) -> str:
        found = match.group(0)
        kept = '""' if found[0] in "\"'R" else " "
        return kept + "\n" * found.count("\n")

    literal = r'R"(?P<tag>[^\s()\\]{0,16})\((?s:.*?)\)(?P=tag)"|"(?:\\.|[^"\\\n])*"'
    # A digit before the quote is a separator as in 1'000.
    character = r"(?<![0-9a-fA-F])'(?:\\.|[^'\\\n])+'"
    comment = r"//(?:\\\n|[^\n])*|/\*(?s:.*?)\*/"
    return re.sub(f"{comment}|{literal}|{character}", emptied, text)


def block_kind(head: str) -> str:
    """What a brace opens outside of any function: "scope", "function", "member" or "other"."""
    head = " ".join(head.split())
    if re.search(r"\)\s*:(?!:)", head) and re.search(r"[\w>]$", head) and not re.search(
            r"\b(const|noexcept|override|final|try)$", head):
        return "member"  # of a constructor's initialiser list: Foo() : a_{1} {
    if re.search(r"(=|,|\()$", head):
        return "other"
    keyword = re.match(r"(?:template ?<.*> ?)?(?:inline |static |export )*"
                       r"(namespace|class|struct|union|enum|extern)\b", head)
    if keyword and not re.search(r"\) ?(const|noexcept|override|final)?$", head):
        return "scope"
    return "function" if "(" in head else "other"


def cpp_functions(text: str) -> list[tuple[str, int, int]]:
    """(name, first line, lines) of every function not inside another."""
    code = re.sub(r"^\s*#(?:\\\n|[^\n])*", lambda m: "\n" * m.group(0).count("\n"),
                  without_comments_and_literals(text), flags=re.MULTILINE)
    functions = []
    kinds: list[str] = []
    head, head_line, line = "", 1, 1
    start = (1, "")
    for character in code:
        if "function" in kinds:
            if character == "{":
                kinds.append("inner")
            elif character == "}" and kinds.pop() == "function":
                name = re.search(r"([\w:~]+|operator\W+?)\s*\(", start[1])
                functions.append((name.group(1) if name else "?", start[0], line - start[0] + 1))
                head = ""
        elif character == "{":
            kind = block_kind(head)
            kinds.append(kind)
            if kind == "function":
                start = (head_line, head)
            elif kind != "member":
                head = ""
        elif character == "}":
            if not kinds or kinds.pop() != "member":
                head = ""
        elif character == ";" or (character == ":" and head in ACCESS):
            head = ""
        elif head or not character.isspace():
            head_line = head_line if head else line
            head += character
        line += character == "\n"
    return functions


def python_functions(text: str) -> list[tuple[str, int, int]]:
    return [
        (node.name, node.lineno, node.end_lineno - node.lineno + 1)
        for node in ast.walk(ast.parse(text))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    ]


def read_exceptions(text: str) -> dict[str, str]:
    """"path reason" for a file's length, "path:function reason" for a function's."""
    exceptions = {}
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        name, _, reason = line.partition(" ")
        assert len(reason.split()) >= 3, f"tests/tidy_exceptions.txt: {name}: no reason given"
        exceptions[name] = reason
    return exceptions


def size_violations() -> dict[str, str]:
    found = {}
    for path in sources():
        if path.suffix not in CPP_SUFFIXES | {".py"}:
            continue
        text = text_of(path)
        lines = text.count("\n")
        if lines > MAX_FILE_LINES:
            found[str(path)] = f"{path}: {lines} lines; at most {MAX_FILE_LINES}"
        functions = python_functions(text) if path.suffix == ".py" else cpp_functions(text)
        for name, first, count in functions:
            if count > MAX_FUNCTION_LINES:
                found[f"{path}:{name}"] = (
                    f"{path}:{first}: {name} has {count} lines; at most {MAX_FUNCTION_LINES}")
    return found


MARKER = re.compile(r"\b(?:TODO|FIXME|XXX|HACK)\b(?!\((?:\S+\s+){3,}[^)]*\))")


def marker_lines(text: str) -> list[int]:
    """Lines with a marker that does not say, in parentheses, why it cannot be done now."""
    return [n for n, line in enumerate(text.splitlines(), 1) if MARKER.search(line)]


def kj_lines(text: str) -> list[int]:
    code = without_comments_and_literals(text)
    pattern = re.compile(r"\b(?:kj|capnp)::|#\s*include\s+<(?:kj|capnp)/")
    found = {n for n, line in enumerate(code.splitlines(), 1) if pattern.search(line)}
    generated = re.compile(r'#\s*include\s+"[^"]*\.capnp\.h"')
    found |= {n for n, line in enumerate(text.splitlines(), 1) if generated.search(line)}
    return sorted(found)


def transport_headers_used_outside() -> set[str]:
    """Headers of transport/ that another folder's code includes, directly or through another."""
    seen: set[str] = set()
    todo = [
        name
        for path in cpp_sources()
        if path.parts[0] in INCLUDES and path.parts[0] != "transport"
        for name in quoted_includes(text_of(path))
    ]
    while todo:
        name = todo.pop()
        path = pathlib.Path(name)
        if name in seen or not name.startswith("transport/") or path not in set(cpp_sources()):
            continue
        seen.add(name)
        todo += quoted_includes(text_of(path))
    return seen


def digest(path: pathlib.Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def generated_headers() -> pathlib.Path:
    """Where the schema's C++ is, made here so that the test needs no build."""
    output = CACHE / "generated"
    output.mkdir(parents=True, exist_ok=True)
    schemas = [str(path) for path in sources() if path.suffix == ".capnp"]
    if schemas:
        subprocess.run(["capnp", "compile", f"-oc++:{output}", "--src-prefix=.", *schemas],
                       cwd=ROOT, check=True)
    return output


def compile_alone(header: pathlib.Path, generated: pathlib.Path) -> str:
    """Compiler output when `header` does not compile by itself; empty when it does. Remembers
    what the header was made of, so that an unchanged one is not compiled again."""
    memory = CACHE / (str(header).replace("/", "_") + ".json")
    if memory.exists():
        made_of = json.loads(memory.read_text())
        if all(pathlib.Path(f).exists() and digest(pathlib.Path(f)) == d
               for f, d in made_of.items()):
            return ""
    depends = memory.with_suffix(".d")
    result = subprocess.run(
        ["g++", "-std=c++20", "-fsyntax-only", "-x", "c++", "-include", str(ROOT / header),
         "-I", str(ROOT), "-I", str(generated), "-MMD", "-MF", str(depends), "/dev/null"],
        capture_output=True, text=True,
    )
    if result.returncode != 0:
        return f"{header} does not compile alone:\n{result.stderr[:2000]}"
    names = depends.read_text().replace("\\\n", " ").split()[1:]
    ours = [name for name in names if name.startswith(str(ROOT))]
    memory.write_text(json.dumps({name: digest(pathlib.Path(name)) for name in ours}))
    return ""


# The rules.


def test_include_directions():
    assert [v for p in cpp_sources() for v in include_violations(p, text_of(p))] == []


def test_quoted_includes_exist():
    known = {str(path) for path in sources()}
    missing = [
        f'{path}: "{name}"'
        for path in cpp_sources()
        for name in quoted_includes(text_of(path))
        if name.split("/")[0] in INCLUDES.keys() | ANYTHING
        and name not in known
        and name.removesuffix(".h") not in known  # made from a schema
    ]
    assert missing == []


def test_sizes():
    exceptions = read_exceptions(EXCEPTIONS.read_text())
    violations = size_violations()
    assert [v for name, v in violations.items() if name not in exceptions] == []
    assert sorted(exceptions.keys() - violations.keys()) == [], "exceptions nobody needs any more"


def test_markers_have_reasons():
    checked = [p for p in sources() if p.suffix in CPP_SUFFIXES | {".py", ".capnp"}]
    found = [
        f"{path}:{line}"
        for path in checked
        if path.name != pathlib.Path(__file__).name
        for line in marker_lines(text_of(path))
    ]
    assert found == []


def test_kj_stays_in_transport():
    used_outside = transport_headers_used_outside()
    found = [
        f"{path}:{line}"
        for path in cpp_sources()
        if path.parts[0] in INCLUDES
        and (path.parts[0] != "transport" or str(path) in used_outside)
        for line in kj_lines(text_of(path))
    ]
    assert found == []


def test_no_folder_for_leftovers():
    assert [str(p) for p in sources() if FORBIDDEN_FOLDERS & set(p.parts[:-1])] == []


def test_headers_are_self_contained():
    CACHE.mkdir(parents=True, exist_ok=True)
    generated = generated_headers()
    headers = [p for p in cpp_sources() if p.suffix == ".h"]
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        results = pool.map(lambda header: compile_alone(header, generated), headers)
    assert [result for result in results if result] == []


# The rules can fail.


@pytest.mark.parametrize("path, include", [
    ("config/a.h", "kernels/b.h"), ("codec/a.cc", "tiers/b.h"), ("tiers/a.cc", "codec/b.h"),
    ("transport/a.h", "kernels/b.h"), ("client/a.cc", "daemon/b.h"), ("client/a.cc", "tiers/b.h"),
    ("kernels/a.cc", "tests/b.h"), ("client/a.cc", "replay/b.h"), ("daemon/a.cc", "replay/b.h"),
     ("newfolder/a.cc", "config/b.h"), ("tiers/a.cc", "b.h"),
])
def test_a_wrong_include_is_found(path, include):
    assert include_violations(pathlib.PurePath(path), f'#include "{include}"\n')


def test_a_right_include_is_accepted():
    path = pathlib.PurePath("daemon/a.cc")
    assert include_violations(path, '#include <vector>\n#include "tiers/b.h"\n') == []
    assert include_violations(pathlib.PurePath("tests/a.cc"), '#include "daemon/b.h"\n') == []


def test_function_lengths_are_counted():
    body = "  if (x) { y(); }\n" * 5
    text = (
        "namespace a {\n// void Comment() {\nclass B final : public C {\n public:\n"
        '  B() : x_{1}, s_("{") {\n' + body + "  }\n"
        "  int Get() const { return x_; }\n};\n"
        "constexpr int kTable[] = {\n 1,\n 2,\n};\n"
        "template <typename T>\nauto Long(T t)\n    -> int {\n" + body + "}\n"
        "bool operator==(const B& a, const B& b) {\n  return true;\n}\n}  // namespace a\n"
    )
    names = {name: lines for name, _, lines in cpp_functions(text)}
    assert names["B"] == 7
    assert names["Get"] == 1
    assert names["Long"] == 9
    assert len(names) == 4, names


def test_markers_without_a_reason_are_found():
    assert marker_lines("// TO" "DO: later\n") == [1]
    assert marker_lines("x\n// FIX" "ME(bob) later\n") == [2]
    assert marker_lines("// TO" "DO(needs a kernel newer than 6.1): use it\n") == []


def test_kj_types_are_found():
    assert kj_lines("kj::Promise<void> p;\n") == [1]
    assert kj_lines("#include <capnp/message.h>\n") == [1]
    assert kj_lines('#include "transport/terrace.capnp.h"\n') == [1]
    assert kj_lines("// kj::Promise in a comment\n") == []


def test_an_exception_needs_a_reason():
    with pytest.raises(AssertionError):
        read_exceptions("daemon/a.cc big\n")
    assert read_exceptions("# comment\n\na.cc:F one table of keys\n") == {
        "a.cc:F": "one table of keys"}


def test_readme_shows_code_that_the_tests_run():
    examples = [(ROOT / "examples" / name).read_text()
                for name in ("cpp_prefix_cache.cc", "python_prefix_cache.py")]
    blocks = re.findall(r"```(?:cpp|python)\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert len(blocks) >= 3
    for block in blocks:
        assert any(block in example for example in examples), block
