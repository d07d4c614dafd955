"""Which names a font can draw, in figures and in legends. Other names are replaced by a number."""

import contextlib
import unicodedata

from PIL import ImageFont

from utils.system.errors import quoted

LONGEST = 40  # characters of a name in a picture


def labels(names, has, kind='class'):
    """Returns the text to draw for each of some names: the name, or `kind` and its index where the font lacks it.

    Args:
      names: {index: name}.
      has: a function of a character, which returns whether the font has it.
      kind: what the names are of.

    Returns:
      a list of texts, each of at most LONGEST characters.
    """
    texts = []
    for index, name in names.items():
        name = unicodedata.normalize('NFC', name)  # one character for a letter with its accent, where there is one
        texts.append(quoted(name, LONGEST) if is_drawable(name, has) else '%s %d' % (kind, index))
    return texts


def is_drawable(text, has):
    """Returns whether a text is not blank, has no character that `has` rejects, and needs no shaping or reordering."""
    return bool(text.strip()) and all(
        has(c) and unicodedata.category(c)[0] != 'M' and unicodedata.bidirectional(c) not in ('R', 'AL', 'AN')
        for c in text if c.isprintable())  # others are shown as escapes


def characters_of_pillow(font):
    """Returns a function of a character: whether a font of Pillow's has it."""
    if not hasattr(font, 'getname'):  # the bitmap font of older versions
        return lambda c: ord(c) < 256
    missing = bytes(font.getmask('\uffff'))  # the box in place of a character that the font lacks
    return lambda c: bytes(font.getmask(c)) != missing


def legend_font(names):
    """Returns a font of Pillow's for {index: name}: the built-in one or, if that draws more names, matplotlib's."""
    fonts = [ImageFont.load_default()]
    if _count_drawable(names, fonts[0]) < len(names):
        from matplotlib import font_manager

        with contextlib.suppress(ImportError, OSError):  # a Pillow without FreeType
            fonts.append(ImageFont.truetype(font_manager.findfont(font_manager.FontProperties()), 10))
    return max(fonts, key=lambda font: _count_drawable(names, font))  # the first of equals


def _count_drawable(names, font):
    has = characters_of_pillow(font)
    return sum(is_drawable(unicodedata.normalize('NFC', name), has) for name in names.values())


def characters_of_matplotlib():
    """Returns a function of a character: whether the font of matplotlib's figures has it."""
    from matplotlib import font_manager

    found = font_manager.get_font(font_manager.findfont(font_manager.FontProperties())).get_charmap()
    return lambda c: ord(c) in found


def plain(text):
    """Returns a text as matplotlib needs it to draw its dollar signs instead of a formula."""
    return text.replace('$', r'\$')
