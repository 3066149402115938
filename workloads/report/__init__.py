"""What was measured, shown: one HTML file that needs nothing else, and tables in the terminal.

Owns how results look: `measured` is what a report knows of a run, `svg`, `panels` and `charts` draw it, `page` is the
HTML, `terminal` the tables. Draws what it is given and judges nothing but by the spread of the repetitions.
"""
