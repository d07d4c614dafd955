"""Finds the names that a font can draw in figures and legends; other names are replaced by a number."""

import contextlib
import unicodedata

from PIL import ImageFont

from utils.system.errors import quoted

LONGEST = 40  # the most characters of a name in a picture


def labels(names, has, kind='class'):
    """Returns the text to draw for each name: the name itself, or `kind` and its index if the font cannot draw it.

    Args:
      names: {index: name}.
      has: a function that returns whether the font has a character.
      kind: the word before the index, such as 'class'.

    Returns:
      a list of texts, each with at most LONGEST characters.
    """
    texts = []
    for index, name in names.items():
        name = unicodedata.normalize('NFC', name)  # combines letters and accents where a combined character exists
        texts.append(quoted(name, LONGEST) if is_drawable(name, has) else '%s %d' % (kind, index))
    return texts


def is_drawable(text, has):
    """Returns whether text is not blank, has only characters that `has` accepts, and needs no shaping or reordering."""
    return bool(text.strip()) and all(
        has(c) and unicodedata.category(c)[0] != 'M' and unicodedata.bidirectional(c) not in ('R', 'AL', 'AN')
        for c in text if c.isprintable())  # unprintable characters are shown as escapes


def characters_of_pillow(font):
    """Returns a function that returns whether a Pillow font has a character."""
    if not hasattr(font, 'getname'):  # the bitmap font of older versions
        return lambda c: ord(c) < 256
    missing = bytes(font.getmask('\uffff'))  # the box that is drawn for a missing character
    return lambda c: bytes(font.getmask(c)) != missing


def legend_font(names):
    """Returns a Pillow font for {index: name}: matplotlib's if it can draw more names than the built-in one.

    Otherwise, returns Pillow's built-in font.
    """
    fonts = [ImageFont.load_default()]
    if _count_drawable(names, fonts[0]) < len(names):
        from matplotlib import font_manager

        with contextlib.suppress(ImportError, OSError):  # a Pillow without FreeType
            fonts.append(ImageFont.truetype(font_manager.findfont(font_manager.FontProperties()), 10))
    return max(fonts, key=lambda font: _count_drawable(names, font))


def _count_drawable(names, font):
    has = characters_of_pillow(font)
    return sum(is_drawable(unicodedata.normalize('NFC', name), has) for name in names.values())


def characters_of_matplotlib():
    """Returns a function that returns whether the font of matplotlib's figures has a character."""
    from matplotlib import font_manager

    found = font_manager.get_font(font_manager.findfont(font_manager.FontProperties())).get_charmap()
    return lambda c: ord(c) in found


def plain(text):
    """Escapes dollar signs, so that matplotlib draws them instead of interpreting text between them as a formula."""
    return text.replace('$', r'\$')
