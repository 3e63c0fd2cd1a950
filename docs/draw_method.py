#!/usr/bin/env python3
"""Draw docs/method.svg, the picture of the method in README.md:  python docs/draw_method.py"""
from pathlib import Path
from xml.sax.saxutils import escape

BRANCHES = ('#0072b2', '#d55e00', '#009e73')  # Okabe-Ito: apart for every kind of color vision
INK, GRAY, PALE = '#24292f', '#6e7781', '#f6f8fa'
POLICIES = ('rand-m5-n1', 'rand-m9-n2', 'rand-m15-n3')
ROWS = (92, 182, 272)
WIDTH, HEIGHT = 1080, 470


def text(x, y, words, size=14, color=INK, anchor='middle', weight='normal', family='sans-serif'):
    return (f'<text x="{x}" y="{y}" font-family="{family}" font-size="{size}" font-weight="{weight}" fill="{color}" '
            f'text-anchor="{anchor}">{escape(words)}</text>')


def box(x, y, width, height, fill=PALE, stroke=GRAY, radius=8, dash=''):
    dash = f' stroke-dasharray="{dash}"' if dash else ''
    return (f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="{radius}" fill="{fill}" stroke="{stroke}" '
            f'stroke-width="1.5"{dash}/>')


def arrow(points, color=GRAY, dash=''):
    dash = f' stroke-dasharray="{dash}"' if dash else ''
    path = 'M' + ' L'.join(f'{x},{y}' for x, y in points)
    return f'<path d="{path}" fill="none" stroke="{color}" stroke-width="1.8"{dash} marker-end="url(#{color[1:]})"/>'


def head(color):
    return (f'<marker id="{color[1:]}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
            f'orient="auto"><path d="M0,0 L8,4 L0,8 z" fill="{color}"/></marker>')


def views():
    """Image, base transform and one view a policy."""
    yield box(20, 157, 70, 50)
    yield text(55, 187, 'image')
    yield arrow([(90, 182), (112, 182)])
    yield box(114, 152, 84, 60)
    yield text(156, 178, 'crop, flip')
    yield text(156, 197, 'once', 12, GRAY)
    for row, color, policy in zip(ROWS, BRANCHES, POLICIES, strict=True):
        yield arrow([(198, 182), (222, row)], color)
        yield box(224, row - 22, 112, 44, '#fff', color)
        yield text(280, row + 5, policy, 13, color, family='monospace')
        yield arrow([(336, row), (374, row)], color)


def network():
    """One network; only its batch norms come in three colors."""
    yield box(376, 48, 246, 268, PALE, INK)
    yield text(499, 38, 'one network, one forward pass', 13, weight='bold')
    for x, name in ((390, 'conv'), (472, 'conv'), (554, 'linear')):
        yield box(x, 62, 54, 240, '#e7ebef', GRAY, 5)
        yield text(x + 27, 187, name, 13)
    for x in (446, 528):
        for row, color in zip(ROWS, BRANCHES, strict=True):
            yield box(x, row - 30, 24, 60, color, color, 4)
            yield text(x + 12, row + 4, 'BN', 11, '#fff', weight='bold')


def losses():
    """Logits, the terms that each branch gets, and the ensemble."""
    for i, (row, color) in enumerate(zip(ROWS, BRANCHES, strict=True)):
        index = '₁₂₃'[i]
        yield arrow([(622, row), (654, row)], color)
        yield box(656, row - 20, 48, 40, '#fff', color)
        yield text(680, row + 6, f'Q{index}', 16, color)
        yield text(714, row - 8, f'CE(Q{index}, y) + KL(Q ‖ Q{index})', 14, color, 'start')
        yield arrow([(704, row), (886, row), (938, 166 + 16 * i)], color)
    yield box(940, 148, 112, 68, '#fff', INK)
    yield text(996, 174, 'ensemble Q', 14, weight='bold')
    yield text(996, 196, 'Σ softmax(μ)ᵢ Qᵢ', 13, GRAY)
    yield text(1052, 300, 'CE(Q, y) trains μ alone; Q teaches every branch', 13, INK, 'end')
    yield text(1052, 319, 'by KL on normalised logits, without a gradient', 13, INK, 'end')
    yield arrow([(996, 216), (996, 284)], INK, '5 4')


def export():
    """What is left after training."""
    yield arrow([(499, 316), (499, 374)], BRANCHES[1])
    yield text(512, 350, 'best branch on the validation images', 13, BRANCHES[1], 'start')
    yield box(376, 378, 246, 66, PALE, INK)
    for x, name in ((390, 'conv'), (472, 'conv'), (554, 'linear')):
        yield box(x, 388, 54, 46, '#e7ebef', GRAY, 5)
        yield text(x + 27, 416, name, 13)
    for x in (446, 528):
        yield box(x, 388, 24, 46, BRANCHES[1], BRANCHES[1], 4)
        yield text(x + 12, 415, 'BN', 11, '#fff', weight='bold')
    yield arrow([(622, 411), (654, 411)], INK)
    yield text(662, 406, 'an ordinary timm model:', 14, INK, 'start', 'bold')
    yield text(662, 426, "timm.create_model('local-dir:…/export')", 13, INK, 'start', family='monospace')


def main():
    parts = [*views(), *network(), *losses(), *export()]
    svg = (f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" '
           f'viewBox="0 0 {WIDTH} {HEIGHT}"><title>A²-Aug: N policies, one network, N sets of batch norm</title>'
           f'<defs>{"".join(head(color) for color in (*BRANCHES, INK, GRAY))}</defs>'
           f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>' + '\n'.join(parts) + '</svg>\n')
    Path(__file__).with_name('method.svg').write_text(svg, encoding='utf-8')


if __name__ == '__main__':
    main()
