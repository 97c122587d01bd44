"""An article in wikitext, and the plain text in it."""

ARTICLE = """{{Infobox|name=[[A]]|text=gone}}
'''Abel''' ({{IPA|x}}; born [[1970]]) is a [[painting|painter]] from [[Berlin]].\
\
\
<ref name=a>Gone &amp; lost</ref> He
paints.&nbsp;Well<!-- gone -->, <small>mostly</small>.

[[File:Abel.jpg|thumb|A caption, [[gone]].]]

== Works ==
* ''One''
* [http://x.org Two]

{| class="wikitable"
| gone || table
|}

=== Empty ===

== References ==
{{reflist}}

[[Category:Painters]] [[de:Abel]]
"""
PLAIN = "Abel (x; born 1970) is a painter from Berlin. He\npaints. Well, mostly.\n\nWorks\nOne\nTwo"
