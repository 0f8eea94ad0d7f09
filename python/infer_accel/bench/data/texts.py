"""Real text, out of what is installed: the interpreter's own library, and documentation where a system has it."""

from __future__ import annotations

import functools
import html
import re
import sysconfig
from importlib.metadata import distributions
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["chats", "code", "english", "languages", "multilingual"]

_DOCSTRING = re.compile(r'"""(.+?)"""', re.DOTALL)


@functools.cache
def english() -> str:
    """Return about three megabytes of English: the language reference, and the library's docstrings."""
    from pydoc_data import topics

    parts = [*topics.topics.values()]
    for source in _library_sources():
        parts += _DOCSTRING.findall(source)
    return "\n\n".join(parts)


@functools.cache
def code() -> str:
    """Return about twelve megabytes of Python: the sources of the standard library."""
    return "\n".join(_library_sources())


def _library_sources() -> Iterator[str]:
    folder = Path(sysconfig.get_path("stdlib"))
    for path in sorted(folder.rglob("*.py")):
        if not {"test", "tests", "site-packages", "dist-packages"} & set(path.parts):
            yield path.read_text("utf-8", errors="ignore")


#: Where GNOME's user documentation lies (Debian and Ubuntu: the package gnome-user-docs), one folder a language.
_HELP = Path("/usr/share/help")
_PARAGRAPH = re.compile(r"<(p|title|desc)\b[^>]*>(.*?)</\1>", re.DOTALL)
_TAGS = re.compile(r"<[^>]*>")
#: Bytes of each language; where less of it is translated, the language is left out.
_LANGUAGE_BYTES = 100_000


@functools.cache
def languages() -> dict[str, str]:
    """Return as much text of each language that the system's GNOME documentation has; nothing where it has none."""
    found = {}
    for folder in sorted(_HELP.glob("*/gnome-help")):
        text = _translated(folder).encode()
        if folder.parent.name != "C" and len(text) >= _LANGUAGE_BYTES:
            found[folder.parent.name] = text[:_LANGUAGE_BYTES].decode(errors="ignore")
    return found


def _translated(folder: Path) -> str:
    parts, size = [], 0
    for path in sorted(folder.glob("*.page")):
        found = _PARAGRAPH.findall(path.read_text("utf-8", errors="ignore"))
        paragraphs = (" ".join(html.unescape(_TAGS.sub("", inner)).split()) for _, inner in found)
        parts.append("\n\n".join(filter(_is_translated, paragraphs)))
        size += len(parts[-1].encode())
        if size > _LANGUAGE_BYTES:
            break
    return "\n\n".join(parts)


_ENGLISH = frozenset({"and", "click", "the", "this", "with", "you", "your"})


def _is_translated(paragraph: str) -> bool:
    """Whether a paragraph is not in English, in which those that nobody has translated stand there."""
    return _ENGLISH.isdisjoint(paragraph.lower().split())


@functools.cache
def chats() -> list[str]:
    """Return conversations: descriptions of installed packages, a few paragraphs and their code a turn, as rendered.

    Prose, Markdown and code side by side, as people and models write to each other; a few messages each.
    """
    roles = cycle(["User", "Assistant"])
    seen, rendered, turns = set(), [], []
    for distribution in sorted(distributions(), key=lambda found: str(found.metadata["Name"]).lower()):
        # After the headers, in the newer form; in the older one it is a header itself, which is left out.
        _, _, description = (distribution.read_text("METADATA") or "").partition("\n\n")
        # Special tokens in text are a matter of options, which differ between contenders.
        if description in seen or "<|" in description:
            continue
        seen.add(description)
        paragraphs = description.split("\n\n")
        for at in range(0, len(paragraphs), 3):
            message = "\n\n".join(paragraphs[at : at + 3]).strip()[:4000]
            turns.append(f"### {next(roles)}\n\n{message}\n\n")
            if len(turns) == 6:
                rendered.append("".join(turns))
                turns = []
    return rendered


def multilingual() -> str:
    """Return a little text in many scripts: Article 1 of the Universal Declaration of Human Rights."""
    return "\n".join(_ARTICLE_1)


_ARTICLE_1 = (
    "All human beings are born free and equal in dignity and rights.",
    "Alle Menschen sind frei und gleich an Würde und Rechten geboren.",
    "Tous les êtres humains naissent libres et égaux en dignité et en droits.",
    "Todos los seres humanos nacen libres e iguales en dignidad y derechos.",
    "Todos os seres humanos nascem livres e iguais em dignidade e em direitos.",
    "Wszyscy ludzie rodzą się wolni i równi pod względem swej godności i swych praw.",
    "Všichni lidé rodí se svobodní a sobě rovní co do důstojnosti a práv.",
    "Minden emberi lény szabadon születik és egyenlő méltósága és joga van.",
    "Kaikki ihmiset syntyvät vapaina ja tasavertaisina arvoltaan ja oikeuksiltaan.",
    "Tất cả mọi người sinh ra đều được tự do và bình đẳng về nhân phẩm và quyền.",
    "Bütün insanlar hür, haysiyet ve haklar bakımından eşit doğarlar.",
    "Όλοι οι άνθρωποι γεννιούνται ελεύθεροι και ίσοι στην αξιοπρέπεια και τα δικαιώματα.",
    "Все люди рождаются свободными и равными в своем достоинстве и правах.",
    "Всі люди народжуються вільними і рівними у своїй гідності та правах.",
    "כל בני האדם נולדו בני חורין ושווים בערכם ובזכויותיהם.",
    "يولد جميع الناس أحرارًا متساوين في الكرامة والحقوق.",
    "تمام افراد بشر آزاد به دنیا می‌آیند و از لحاظ حیثیت و حقوق با هم برابرند.",
    "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता और समानता प्राप्त है।",
    "সমস্ত মানুষ স্বাধীনভাবে সমান মর্যাদা এবং অধিকার নিয়ে জন্মগ্রহণ করে।",
    "மனிதப் பிறிவியினர் சகலரும் சுதந்திரமாகவே பிறக்கின்றனர்.",
    "มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกันในเกียรติศักดิ์และสิทธิ",
    "人人生而自由，在尊严和权利上一律平等。",
    "すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。",
    "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다.",
    "ყველა ადამიანი იბადება თავისუფალი და თანასწორი თავისი ღირსებითა და უფლებებით.",
    "Բոլոր մարդիկ ծնվում են ազատ ու հավասար իրենց արժանապատվությամբ ու իրավունքներով։",
    "ሁሉም የሰው ልጆች ነጻ ሆነው በክብርና በመብትም እኩል ሆነው የተፈጠሩ ናቸው።",
)
