# Writes FOLDER/adamant.1, .bash and .zsh by what PROGRAM says. -DPROGRAM, -DVERSION, -DFOLDER.
function(say file)
  execute_process(COMMAND ${PROGRAM} ${ARGN} OUTPUT_FILE ${FOLDER}/${file} COMMAND_ERROR_IS_FATAL ANY)
endfunction()

file(MAKE_DIRECTORY ${FOLDER})
say(adamant.bash completion bash)
say(adamant.zsh completion zsh)
say(help --help-all)
file(READ ${FOLDER}/help help)
# roff: backslashes begin escapes, and a dot or a quote at the beginning of a line a request.
string(REPLACE "\\" "\\e" help "${help}")
string(REPLACE "-" "\\-" help "${help}")
string(REGEX REPLACE "(^|\n)([.'])" "\\1\\\\&\\2" help "${help}")
file(WRITE ${FOLDER}/adamant.1
     ".TH ADAMANT 1 \"\" \"adamant ${VERSION}\"\n.SH NAME\nadamant \\- parameter sets of an Adamant server, from a shell\n"
     ".SH DESCRIPTION\n.nf\n${help}.fi\n")
