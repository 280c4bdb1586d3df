"""Suffixes that promise a kind of text, which may hold anything: programs, markup, subtitles, music, mail."""

KNOWN = frozenset(
    f".{suffix}"
    for suffix in """
    md markdown mdown mkd mdx rmd qmd rst adoc asciidoc org wiki mediawiki creole textile pod rdoc tex ltx latex sty cls
    bib bst typ roff man ms mom texi texinfo sgml xml xsd xsl xslt dtd svg rdf owl tei ttl n3 nt nq trig xhtml shtml
    srt vtt ass ssa sub sbv lrc smi ttml abc ly ily krn gabc cho chordpro crd pro musicxml pgn sgf fen fountain fdx
    eml mbox mbx ics vcf vcard ged asc pem ris enw nbib po pot strings properties cue m3u m3u8 pls nfo url
    fasta fa fna faa ffn fastq fq gb gbk gff gff3 gtf bed sam pdb cif mol sdf obo conll conllu conllx iob bio ann vrt
    gcode nc dxf obj mtl stl ply gpx kml eps ps
    c h cc cpp cxx c++ hh hpp hxx h++ ipp inl tpp cu cuh cl m mm swift d di zig nim nims v vh sv svh vhd vhdl go rs
    java kt kts scala sc sbt groovy gradle clj cljs cljc edn cs csx fs fsi fsx vb vba vbs bas frm pas dpr pp inc
    py pyi pyw pyx pxd pxi ipy rb rake gemspec ru pl pm t raku php php3 php4 php5 phtml js mjs cjs jsx ts mts cts tsx
    coffee vue svelte astro css scss sass less styl pcss dart lua tcl r rnw jsm es hx as e ex exs eex heex leex erl hrl
    hs lhs elm purs ml mli mll mly re rei idr agda lean thy coq sml sig lisp lsp el scm ss rkt fnl lfe f for f77 f90 f95
    f03 f08 ftn ada adb ads cob cbl cpy asm s nasm ll wat wast mod def mat nb wl wls sas do ado sps stan bug jags apl
    j q k bqn fth 4th forth st factor pro pony cr odin vala vapi gd gdshader glsl vert frag geom comp hlsl wgsl metal
    shader sh bash zsh fish csh ksh bat cmd ps1 psm1 psd1 awk sed nu vim ahk au3 applescript sql psql cypher sparql rq
    graphql gql proto thrift capnp fbs idl sol vy move cairo prisma rego cue dhall jsonnet libsonnet nix bzl bazel star
    cmake mk mak make am ac m4 in ninja spec ebuild dockerfile containerfile tf tfvars hcl nomad pde ino scad
    ini cfg conf cnf toml yaml yml env editorconfig gitignore desktop service reg plist xaml qml ui resx pug jade haml
    slim erb rhtml ejs hbs handlebars mustache liquid njk nunjucks twig jinja jinja2 j2 tmpl tpl template tt ftl vm mako
    blade cshtml vbhtml razor gohtml asp aspx ascx asax ashx jsp jspx jspf tag cfm cfc cgi diff patch rej feature
    robot y yy l lex g g4 ebnf pegjs lark gnuplot gp plt dot gv puml mmd json5 jsonc hjson cson avsc code-workspace gltf
    har lock map resolved sarif tfstate webapp webmanifest importmap x xs arb canvas
    excalidraw geojson topojson czml jsonld xcstrings code-snippets mcmeta bbmodel uproject uplugin asmdef asmref
    inputactions tsbuildinfo slnf sublime-settings sublime-keymap sublime-mousemap
    sublime-menu sublime-commands sublime-project sublime-workspace sublime-build sublime-completions sublime-macro
    sublime-theme sublime-color-scheme sublime-snippet sublime-syntax
    """.split()
)
# under which a web page is saved by mistake; under .php or .asp a page without a program is code too
PAGES = frozenset(".md .markdown".split())
SHEETS = frozenset(".xls .xlsx .xlsm .xlsb .ods".split())  # which programs also give to HTML and to tables
