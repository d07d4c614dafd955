"""The text of report.html: scores, confusion matrix and pictures on one page that opens offline and runs no script."""

import base64
import collections
import html
import io

import numpy as np
from PIL import Image

from utils.prediction import metrics
from utils.system.errors import printable

PICTURES = ('image', 'label', 'prediction', 'errors')
MOST_CELLS = 40  # classes whose matrix is a table; of more it is a picture
MAP_SIDE = 768  # pixels of that picture
CONFUSIONS = 10  # listed
TOTALS = (('mean_iou', 'mean IoU'), ('pixel_accuracy', 'pixel accuracy'), ('mean_accuracy', 'mean accuracy'),
          ('frequency_weighted_iou', 'frequency weighted IoU'))

# matrix: [n, n], rows by label; names: of the n classes, or None; colours: uint8 [at least n, 3]; images: paths;
# counted, left_out: how many images have an IoU of their own and how many have no counted pixel;
# worst, best: lists of report.Shown; origin, settings: lists of (name, value).
Findings = collections.namedtuple(
    'Findings', 'matrix names colours images counted left_out worst best origin settings')

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882; --blue: 47, 111, 219; }
* { box-sizing: border-box; }
body { font: 16px/1.45 system-ui, sans-serif; margin: 0 auto; padding: 1rem; max-width: 76rem; }
h1 { font-size: 1.5rem; margin: .2rem 0 .6rem; }
h2 { font-size: 1.15rem; margin: 2rem 0 .6rem; padding-top: .8rem; border-top: 1px solid var(--line); }
p, figure { margin: .4rem 0; }
small, figcaption, .origin { opacity: .75; font-size: .85rem; }
.origin, .name { overflow-wrap: anywhere; }
.totals { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .6rem; margin: 1rem 0; }
.totals div { background: var(--soft); border-radius: .5rem; padding: .6rem .8rem; }
.totals b { display: block; font-size: 1.5rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
.bars { width: 100%; }
.bars td, .bars th { padding: .2rem .4rem; text-align: right; white-space: nowrap; font-weight: normal;
  width: 1%; }
.bars th:first-child { text-align: left; white-space: normal; overflow-wrap: anywhere; width: auto; }
.bars .wide { width: 55%; }
.bar { background: var(--soft); height: .9rem; border-radius: .2rem; overflow: hidden; }
.bar i { display: block; height: 100%; background: rgb(var(--blue)); }
.swatch { display: inline-block; width: .9em; height: .9em; margin-right: .45em; border: 1px solid #888;
  vertical-align: -.1em; }
.scroll { overflow-x: auto; }
.matrix td, .matrix th { border: 1px solid var(--line); padding: .15rem .3rem; min-width: 2.1rem; text-align: center;
  font-size: .8rem; font-weight: normal; }
.matrix tr > :first-child { position: sticky; left: 0; background: Canvas; text-align: left; white-space: nowrap;
  max-width: 11rem; overflow: hidden; text-overflow: ellipsis; }
.map { width: 100%; max-width: 48rem; image-rendering: pixelated; border: 1px solid var(--line); }
.shown { margin: 1rem 0 1.4rem; }
.shown .pictures { display: grid; grid-template-columns: repeat(4, 1fr); gap: .5rem; }
.shown img { width: 100%; display: block; border-radius: .25rem; }
.settings td { padding: .1rem .8rem .1rem 0; vertical-align: top; overflow-wrap: anywhere; }
@media (max-width: 40rem) {
  body { padding: .7rem; }
  .shown .pictures { grid-template-columns: repeat(2, 1fr); }
  .bars .wide { width: 25%; }
  .bars td, .bars th { padding: .2rem .25rem; }
}
"""

HEAD = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>Test report</title>
<style>""" + STYLE + """</style>
</head>
<body>
"""


def page(findings):
    """The whole page of Findings as text."""
    scores = metrics.scores(findings.matrix)
    parts = [HEAD, '<h1>Test report</h1>\n', _origin(findings), _totals(scores),
             '<h2>IoU of each class</h2>\n', _bars(findings, scores),
             '<h2>Confusion matrix</h2>\n', _matrix(findings), _confusions(findings)]
    if findings.counted > len(findings.worst):
        parts += _images('The %d worst images, worst first' % len(findings.worst), findings, findings.worst)
        parts += _images('The %d best images, best first' % len(findings.best), findings, findings.best)
    elif findings.worst:
        parts += _images('All images, worst first', findings, findings.worst)
    return ''.join(parts + ['<h2>Settings</h2>\n', _settings(findings.settings), '</body>\n</html>\n'])


def text(value):
    """Any text as HTML that shows it, unprintable characters escaped."""
    return html.escape(printable(str(value)))


def percent(value, digits=1):
    """A fraction in per cent, '-' for nan."""
    return '-' if np.isnan(value) else '%.*f' % (digits, 100 * value)


def data_uri(kind, content):
    """A file's MIME type and bytes as an address that holds them."""
    return 'data:%s;base64,%s' % (kind, base64.b64encode(content).decode('ascii'))


def _origin(findings):
    lines = ['%s: %s' % (text(name), text(value)) for name, value in findings.origin]
    lines.append('images: %d' % (findings.counted + findings.left_out) + (
        ', of which %d without a counted pixel' % findings.left_out if findings.left_out else ''))
    return '<p class="origin">%s</p>\n' % '<br>'.join(lines)


def _totals(scores):
    boxes = ''.join('<div><b>%s %%</b>%s</div>' % (percent(scores[key], 2), name) for key, name in TOTALS)
    return '<div class="totals">%s</div>\n' % boxes


def _class_name(findings, index):
    name = '%d %s' % (index, findings.names[index]) if findings.names else 'class %d' % index
    return '<span class="swatch" style="background:#%02x%02x%02x"></span>%s' % (
        tuple(int(value) for value in findings.colours[index]) + (text(name),))


def _bars(findings, scores):
    rows = ['<tr><th>class</th><th class="wide"></th><th>IoU %</th><th>accuracy %</th></tr>']
    for index, (iou, accuracy) in enumerate(zip(scores['iou'], scores['accuracy'])):
        rows.append('<tr><th>%s</th><td class="wide"><div class="bar"><i style="width:%.1f%%"></i></div></td>'
                    '<td>%s</td><td>%s</td></tr>' % (_class_name(findings, index), 100 * np.nan_to_num(iou),
                                                    percent(iou), percent(accuracy)))
    return '<table class="bars">\n%s\n</table>\n' % '\n'.join(rows)


def _matrix(findings):
    """The matrix, every row as shares of the label's pixels: a table, or of many classes a picture."""
    matrix = findings.matrix
    shares = metrics.ratio(matrix, np.broadcast_to(matrix.sum(1, keepdims=True), matrix.shape))  # [n, n]
    if len(matrix) > MOST_CELLS:
        return _map(shares)
    rows = ['<tr><th>label \\ prediction</th>%s</tr>' % ''.join('<th>%d</th>' % index for index in range(len(matrix)))]
    for index, row in enumerate(shares):
        cells = ''.join('<td>%s</td>' % ('' if np.isnan(share) else '0') if not share >= 0.0005 else
                        '<td style="background:rgba(var(--blue),%.3f)%s">%s</td>' % (
                            share, ';color:#fff' if share > 0.55 else '', percent(share, 0 if share >= 0.0995 else 1))
                        for share in row)
        rows.append('<tr><th>%s</th>%s</tr>' % (_class_name(findings, index), cells))
    return ("<p><small>Per cent of each label's pixels that were given to each class.</small></p>\n"
            '<div class="scroll"><table class="matrix">\n%s\n</table></div>\n' % '\n'.join(rows))


def _map(shares):
    """The shares [n, n] as a picture: white for none, blue for all."""
    blue = 255 - np.nan_to_num(shares)[..., None] * (255 - np.array([8, 48, 107]))  # [n, n, 3]
    side = max(1, MAP_SIDE // len(shares))
    file = io.BytesIO()
    Image.fromarray(blue.astype(np.uint8).repeat(side, axis=0).repeat(side, axis=1)).save(file, 'PNG')
    return ("<p><small>Rows by label, columns by prediction, from class 0 at the upper left; the darker, the more of "
            "the label's pixels.</small></p>\n"
            '<img class="map" alt="confusion matrix" src="%s">\n' % data_uri('image/png', file.getvalue()))


def _confusions(findings):
    """The pairs of classes with the most pixels that were taken for another class, as a list."""
    wrong = np.array(findings.matrix)
    labelled = wrong.sum(1)
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind='mergesort')[:CONFUSIONS]
    pairs = [divmod(int(place), len(wrong)) for place in order]
    lines = ['<li>%s taken for %s: %s&nbsp;%% of its pixels</li>' % (
        _class_name(findings, label), _class_name(findings, other), percent(wrong[label, other] / labelled[label]))
        for label, other in pairs if wrong[label, other]]
    return '<p>Most frequent confusions:</p>\n<ol>\n%s\n</ol>\n' % '\n'.join(lines) if lines else ''


def _images(title, findings, images):
    """A title and the rows of images that it stands above, a list of text."""
    rows = ['<h2>%s</h2>\n<p><small>Errors are red, pixels that do not count grey.</small></p>\n' % title]
    for number, shown in enumerate(images, 1):
        pictures = ''.join('<figure><img alt="%s" src="%s"><figcaption>%s</figcaption></figure>' % (
            kind, data_uri(*file), kind) for kind, file in zip(PICTURES, shown.pictures))
        rows.append('<div class="shown"><div class="name">%d. IoU <b>%s %%</b> <small>%s</small></div>'
                    '<div class="pictures">%s</div></div>\n' % (
                        number, percent(shown.iou), text(findings.images[shown.index]), pictures))
    return rows if images else []


def _settings(settings):
    rows = '\n'.join('<tr><td>--%s</td><td>%s</td></tr>' % (text(name), text(value)) for name, value in settings)
    return '<details><summary>%d flags</summary><table class="settings">\n%s\n</table></details>\n' % (
        len(settings), rows)
