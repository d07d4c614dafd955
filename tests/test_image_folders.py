"""utils/data/sources.py: images that are named one by one, and those in a folder and its subfolders."""

import os

import pytest

from utils.data import sources
from utils.system.errors import UserError, quoted


def touch(folder, *names):
    for name in names:
        path = os.path.join(str(folder), name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        open(path, 'w').close()


def below(folder, *left_out):
    return sources.images_below(str(folder), [str(path) for path in left_out])


def test_images_by_suffix_in_sorted_order_and_none_that_is_hidden(tmp_path):
    touch(tmp_path, 'b.PNG', 'a.jpg', 'sub/z.webp', 'sub/deep/y.tiff', 'sub.bmp', '.hidden.jpg', '.git/x.jpg',
          'notes.txt', 'jpg', 'c.jpg.txt', 'sub/.x/x.jpg', 'dir.jpg/d.jpeg')
    assert below(tmp_path) == ['a.jpg', 'b.PNG', 'dir.jpg/d.jpeg', 'sub.bmp', 'sub/deep/y.tiff', 'sub/z.webp']
    assert below(str(tmp_path) + '/') == below(tmp_path)


def test_files_that_are_left_out_are_counted_by_suffix(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sources, 'has_decoder', lambda path: not path.lower().endswith(('.heic', '.avif')))
    touch(tmp_path, 'a.jpg', 'b.HEIC', 'sub/c.heic', 'd.avif', 'README', '.hidden', 'out/metrics.json')
    assert below(tmp_path, tmp_path / 'out') == ['a.jpg']
    assert capsys.readouterr().err == (
        'note: --image_dir=%s: files skipped, as their extensions are not those of images: 4 (2 .heic, 1 .avif, '
        '1 without suffix; to read HEIC: pip install -r requirements-heif.txt)\n' % quoted(tmp_path))
    (tmp_path / 'a.jpg').unlink()
    with pytest.raises(UserError, match=r'contains no images \(other files: 2 .heic, 1 .avif, 1 .json, 1 without'):
        below(tmp_path)
    touch(tmp_path / 'many', *('%d.%s%d' % (i, '\x1b' * 30, i) for i in range(9)))
    with pytest.raises(UserError, match='and [5-8] more') as error:
        below(tmp_path / 'many')
    assert len(str(error.value)) <= 300 and str(error.value).isprintable()
    touch(tmp_path, 'pictures/a.jpg')
    assert below(tmp_path / 'pictures') == ['a.jpg'] and capsys.readouterr().err == ''


def test_outputs_are_left_out(tmp_path):
    touch(tmp_path, 'a.jpg', 'out/prediction/a_mask.png', 'out/confusion_matrix.png', 'b/output.png')
    assert below(tmp_path, tmp_path / 'out', tmp_path / 'absent') == ['a.jpg', 'b/output.png']
    (tmp_path / 'link').symlink_to(tmp_path / 'out')
    assert below(tmp_path, tmp_path / 'link') == ['a.jpg', 'b/output.png']
    assert below(tmp_path, tmp_path, tmp_path / 'out' / 'prediction') == [
        'a.jpg', 'b/output.png', 'out/confusion_matrix.png']
    assert below(tmp_path / 'out', tmp_path / 'out') == ['confusion_matrix.png', 'prediction/a_mask.png']


def test_links_are_followed_once(tmp_path):
    """There are loops, two links to one folder, and a link whose name sorts before the name of its folder."""
    touch(tmp_path / 'photos', 'z/a.jpg', 'b.jpg')
    touch(tmp_path, 'outside/c.jpg', 'outside/d/e.jpg')
    (tmp_path / 'photos' / 'z' / 'up').symlink_to(tmp_path / 'photos')
    (tmp_path / 'photos' / 'a_link').symlink_to(tmp_path / 'photos' / 'z')
    (tmp_path / 'photos' / 'more').symlink_to(tmp_path / 'outside')
    (tmp_path / 'photos' / 'more2').symlink_to(tmp_path / 'outside')
    (tmp_path / 'outside' / 'd' / 'back').symlink_to(tmp_path / 'photos')
    (tmp_path / 'photos' / 'itself').symlink_to(tmp_path / 'photos' / 'itself')
    assert below(tmp_path / 'photos') == ['b.jpg', 'more/c.jpg', 'more/d/e.jpg', 'z/a.jpg']


@pytest.mark.skipif(os.geteuid() == 0, reason='root may read every folder')
def test_a_folder_that_cannot_be_read_is_reported(tmp_path, capsys):
    touch(tmp_path, 'a.jpg', 'shut/b.jpg')
    (tmp_path / 'shut').chmod(0)
    try:
        assert below(tmp_path) == ['a.jpg']
    finally:
        (tmp_path / 'shut').chmod(0o700)
    assert 'shut cannot be read (Permission denied): its images are skipped' in capsys.readouterr().err


@pytest.mark.parametrize('name, told', [
    ('empty', 'contains no images'), ('absent', 'does not exist'), ('a.jpg', 'is not a folder: give images with'),
])
def test_no_folder_of_images(tmp_path, name, told):
    touch(tmp_path, 'a.jpg', 'empty/notes.txt')
    with pytest.raises(UserError, match=told):
        below(tmp_path / name)


def test_images_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    touch(tmp_path, 'a.jpg', 'b.jpg', 'c,d.jpg', 'sub/a.jpg')
    named = sources.named_images
    assert named(['b.jpg', 'a.jpg', 'b.jpg']) == ['b.jpg', 'a.jpg']
    assert named(['c,d.jpg']) == ['c,d.jpg']
    assert named(['a.jpg,sub/a.jpg', 'c,d.jpg']) == ['a.jpg', 'sub/a.jpg', 'c,d.jpg']
    assert named(['a.jpg', 'absent.jpg']) == ['a.jpg', 'absent.jpg']  # the missing one is reported when it is predicted
    for names, told in ((['absent.jpg'], 'absent.jpg: no such file'), (['x.jpg,y.jpg'], 'none of the 2 images'),
                        (['a.jpg', 'sub'], '--image=sub is a folder: give it with --image_dir')):
        with pytest.raises(UserError, match=told):
            named(names)
    monkeypatch.setenv('HOME', str(tmp_path))
    assert named(['a.jpg,~/b.jpg']) == ['a.jpg', str(tmp_path / 'b.jpg')]
