"""What a study looks like to people: words, and tables for a terminal.

    text.py    numbers, times and names as text that any terminal can show
    tables.py  rich tables of what `store.Queries` returns
    snippet.py a plan as Python
    facts.py   what the page of a study shows, gathered from the store
    figures.py its figures, by plotly
    page.py    the page, one HTML file with page.html, page.css and page.js

Stands under the command line and above everything else; loads neither torch nor Optuna.
"""
