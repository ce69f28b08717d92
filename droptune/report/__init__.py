"""What a study looks like to people: words, and tables for a terminal.

    text.py    numbers, times and names as text that any terminal can show
    tables.py  rich tables of what `store.Queries` returns
    snippet.py a plan as Python

Stands under the command line and above everything else; loads neither torch nor Optuna.
"""
