"""Draw training runs and write a page about them."""
import importlib.util
import logging
from pathlib import Path

from ..cli.config import StrictParser
from ..engine.files import atomic_write
from .page import write_page
from .run_record import RunRecord, read_run
from .sample_views import sample_views

_logger = logging.getLogger('report')


def main(argv: list[str] | None = None) -> None:
    parser = StrictParser(prog='python -m a2aug_timm.report', description=__doc__)
    parser.add_argument('runs', nargs='+', metavar='RUN', help='folder of a run')
    parser.add_argument('-o', '--output', required=True, metavar='FOLDER', help='folder of the report')
    args = parser.parse_args(argv)
    output = Path(args.output)
    with parser.user_errors():
        runs = read_runs(args.runs)
        output.mkdir(parents=True, exist_ok=True)
    figures = [draw(run, output) for run in runs]
    with atomic_write(output / 'report.html') as path:
        path.write_text(write_page(runs, figures), encoding='utf-8')
    print(f"The report is {output / 'report.html'}; its figures are in the same folder as PNG.")


def read_runs(folders: list[str]) -> list[RunRecord]:
    """Read the folders of the runs.

    Raises:
        ValueError: A folder is not a run's, two runs have the same name, or matplotlib is missing.
    """
    if importlib.util.find_spec('matplotlib') is None:
        raise ValueError('a report needs matplotlib: pip install -e ".[report]"')
    runs = [read_run(folder) for folder in folders]
    if len({run.name for run in runs}) < len(runs):
        raise ValueError('two of the runs have the same name; give folders with different names')
    return runs


def draw(run: RunRecord, folder: Path) -> dict[str, str]:
    """Draw a run's figures and write them to ``folder`` as PNG.

    Returns:
        Title of each figure -> its SVG text.
    """
    from . import plots  # matplotlib is an extra
    figures = {'curves': ('Curves', plots.draw_curves(run))}
    if run.num_branches > 1:
        figures['mu'] = 'Weights', plots.draw_mu(run)
    try:
        figures['views'] = 'What the branches see', plots.draw_views(*sample_views(run))
    except (ValueError, OSError, KeyError, IndexError) as error:
        _logger.warning('%s: no sample views, because its training images cannot be read: %s', run.name, error)
    texts = {}
    for name, (title, figure) in figures.items():
        plots.save(figure, folder / f'{run.name}-{name}.png')
        texts[title] = plots.svg_text(figure, f'{run.name}-{name}')
    return texts


if __name__ == '__main__':
    main()
